"""What a running system is told and tells: plans published and read, topics made, streams read from outside."""

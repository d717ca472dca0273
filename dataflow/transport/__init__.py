"""The only room that imports a Kafka client; everyone else speaks the Protocols of `transport.api`."""

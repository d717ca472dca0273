"""Declarations of other servers turned into ours: Seldon Core 2, KServe and Triton.

``parts`` reads foreign files and remembers what was not read; ``seldon``, ``kserve`` and ``triton`` draw pipelines
(``draft``) from them; ``written`` makes files of those.
"""

from __future__ import annotations

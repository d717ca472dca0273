"""Open an onnxruntime session the way a server needs it: few threads, and the device asked for or an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from dataflow.sdk import ModelError

PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_session(name: str, artifact: Path, providers: Sequence[str], intra_threads: int) -> Any:
    """An `InferenceSession` over `artifact` with every one of `providers` active.

    Raises ModelError when the file is missing or broken, onnxruntime is not installed, or a provider is not active:
    onnxruntime itself falls back to the CPU in silence.
    """
    runtime = _onnxruntime()
    if not artifact.is_file():
        raise ModelError(
            f"model '{name}': no file at {artifact}", hint=f"build it: dataflow model build {name}"
        )
    available = runtime.get_available_providers()
    for provider in providers:
        if provider not in available:
            hint = "install the extra 'gpu' in place of 'cpu'" if "CUDA" in provider else ""
            text = f"model '{name}': this onnxruntime has no {provider}; it has {', '.join(available)}"
            raise ModelError(text, hint=hint)
    if "CUDAExecutionProvider" in providers and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # finds CUDA and cuDNN where their Python packages put them
    options = runtime.SessionOptions()
    # With the default of one thread per core, each session keeps a pool of its own: hundreds of threads in a process
    # of many models, and a slower unload.
    options.intra_op_num_threads = intra_threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # failures reach the caller as exceptions
    try:
        session = runtime.InferenceSession(str(artifact), sess_options=options, providers=list(providers))
    except Exception as error:  # onnxruntime's errors have no common base below Exception
        raise ModelError(f"model '{name}': {artifact} does not load: {first_line(error)}") from error
    active = session.get_providers()
    for provider in providers:
        if provider not in active:
            raise ModelError(
                f"model '{name}': {provider} was asked for, but only {', '.join(active)} became active",
                hint="check that driver, CUDA and cuDNN are those that onnxruntime-gpu was built for",
            )
    return session


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without onnxruntime's bracketed prefix."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.rsplit("[ONNXRuntimeError] : ", 1)[-1]


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            "model.onnx needs onnxruntime",
            hint="pip install 'kafka-dataflow[cpu]', or 'kafka-dataflow[gpu]' on a machine with CUDA",
        ) from error
    module: ModuleType = onnxruntime
    return module

"""Declarations: pydantic models of Topic, Model and Pipeline, read from YAML with the place of every value."""

from __future__ import annotations

from dataflow.spec.documents import (
    ModelSpec,
    NodeSpec,
    PipelineSpec,
    ProjectSpec,
    TestSpec,
)
from dataflow.spec.loader import Declared, Project, load_project
from dataflow.spec.problems import Fault, Problem, errors_of
from dataflow.spec.topics import TopicSpec

__all__ = [
    "Declared", "Fault", "ModelSpec", "NodeSpec", "PipelineSpec", "Problem", "Project", "ProjectSpec", "TestSpec",
    "TopicSpec", "errors_of", "load_project",
]  # fmt: skip

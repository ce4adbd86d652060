"""Policies as data: TOML, JSON and dicts, their JSON Schema, and what looks wrong in a policy that is allowed."""

from retrypolicy.config.lint import Finding, lint
from retrypolicy.config.loading import load_policies
from retrypolicy.config.schema import json_schema

__all__ = ["Finding", "json_schema", "lint", "load_policies"]

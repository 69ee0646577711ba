"""The train step: from a base and rows to an adapter or a model, with a record of what it cost."""

from __future__ import annotations

from edge_forge.train.launch import train
from edge_forge.train.presets import settings
from edge_forge.train.record import TrainRecord
from edge_forge.train.settings import TrainSettings

__all__ = ["TrainRecord", "TrainSettings", "settings", "train"]

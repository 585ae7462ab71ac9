"""Models: layers that are composed, and trained, saved and streamed as one.

Modules:

- ``model``: Model, whose backward pass is derived, and ModelStream
- ``sequential``: Sequential
- ``recording``: the record of a forward pass
"""

from rnnfast.layers.saving import CLASSES

from .model import Model, ModelStream
from .recording import Value, detach
from .sequential import Sequential

__all__ = ["Model", "ModelStream", "Sequential", "Value", "detach"]

CLASSES.update(Model=Model, Sequential=Sequential)

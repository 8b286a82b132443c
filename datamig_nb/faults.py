"""What goes wrong in the night, by name: each is tried on a copy of the clone of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from datamig_nb.fault_scene import FaultResult, Scene
from datamig_nb.faults_meanwhile import lock, writers
from datamig_nb.faults_stopping import crash, full, kill

#: Name of each fault -> what carries it out; one that raises a DatamigError counts as failed.
FAULTS: Mapping[str, Callable[[Scene], FaultResult]] = {
    "kill": kill,
    "crash": crash,
    "writers": writers,
    "lock": lock,
    "full": full,
}

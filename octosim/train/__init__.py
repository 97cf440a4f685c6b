"""Training runs: (model, data, method, seed ...) -> a run directory; resume and replay to the same bits."""

from octosim._callable import make_callable
from octosim.train.config import EPOCHS, Config
from octosim.train.directory import (
    ARRAYS_FILE,
    FORMAT,
    check,
    create,
    decides,
    last_record,
    manifest,
    memory,
    parameter_counts,
    read_config,
    read_digest,
    read_failure,
    read_manifest,
    rebuild,
    reopen,
    save,
    tidy,
    write_manifest,
)
from octosim.train.interrupt import Interrupt
from octosim.train.loop import Progress, train
from octosim.train.planning import step_of
from octosim.train.run import DATA, Batch, Run, load_data, source_of
from octosim.train.verification import Verdict, advance_before, replay, verify

__all__ = [
    "ARRAYS_FILE", "DATA", "EPOCHS", "FORMAT", "Batch", "Config", "Interrupt", "Progress", "Run", "Verdict", "advance_before",
    "check", "create", "decides", "last_record", "load_data", "manifest", "memory", "parameter_counts", "read_config",
    "read_digest", "read_failure",
    "read_manifest", "rebuild", "reopen", "replay", "save", "source_of", "step_of", "tidy", "train", "verify", "write_manifest",
]  # fmt: skip

make_callable(__name__)

"""The commands, by panel of the first page: where each is, as module:name in octosim.cli, and its own page's summary.

This module imports nothing: the first page is there before what a command needs is read.
"""

SUMMARY = "Bit-exact simulation, cost prediction and profiling of INT8 training."
OPTIONS = {
    "--version": ("", "Print the version."),
    "--plugin": ("MODULE", "A module in the current folder whose methods run directories may name; repeatable."),
    "--install-completion": ("", "Install completion for the current shell."),
    "--show-completion": ("", "Show completion for the current shell, to copy it or customize the installation."),
    "--help": ("", "Show this message and exit."),
}
"""The options of octosim itself: how a value is called, and the help."""
PANELS = {
    "Train and compare": {
        "train": (
            "training:train",
            "Train a network with a method's exact arithmetic; the same command gives the same bits on every machine.",
        ),
        "study": (
            "studying:study",
            "A grid of runs, in parallel; the same command again continues it.  Records in records.csv, runs for "
            "`octosim report`.",
        ),
        "watch": (
            "watching:watch", "Watch a run or a study while it trains: curves, states, sums that went wrong, time left."
        ),
        "report": (
            "studying:report",
            "One self-contained page from recorded runs and benches: curves, tables, predicted and measured times.",
        ),
    },
    "Evidence to the bit": {
        "verify": (
            "training:verify",
            "Replay a run from its manifest and compare every file: exit code 0 if every bit is the same, 1 if "
            "not.",
        ),
        "diff": (
            "training:diff", "Replay two runs side by side and name the first step, layer, pass and index where they part."
        ),
        "golden": (
            "checking:golden",
            "Forward and backward test vectors for kernel and RTL authors: .npz, hex, a C header, a C program and a Verilog "
            "testbench.",
        ),
        "check": (
            "checking:check",
            "Compare a tensor of your own kernel with octosim's vectors, and name the deviation that explains the difference.",
        ),
        "audit": (
            "audit:audit",
            "For which layers and passes a float32 simulation of the run (fake quantization) is not exact, and by how much.",
        ),
    },
    "Cost and speed": {
        "cost": (
            "cost:cost",
            "Predict what a training step or an inference costs on a device, by types that it computes in, and whether INT8 "
            "pays.",
        ),
        "bench": (
            "benching:bench",
            "A training step predicted on a device beside the same step measured here, per layer and pass, INT8 and FP32.",
        ),
    },
    "In and out": {
        "import": ("importing:import_", "Import a network with its weights, to train it."),
        "export": (
            "exporting:export",
            "Write a trained network for other programs, with the integers that training ended with, and compare what they "
            "compute.",
        ),
        "new": ("scaffold:new_app", "Start a package of your own: new method NAME."),
    },
    "What there is": {
        "show-env": (
            "show_env:show_env",
            "Show what octosim detects here: versions, instruction sets, threads, limits, clock, data sets, peers.",
        ),
        "models": ("catalogue:models_app", "Networks to train: list."),
        "methods": ("catalogue:methods_app", "Training methods: what they are, their parameters."),
        "data": ("catalogue:data_app", "Data sets: list, fetch; check your own."),
        "profiles": ("profiles:profiles_app", "Hardware profiles: list, show, check a file, its schema, calibrate."),
        "runs": ("catalogue:runs_app", "Run directories: list."),
    },
}  # fmt: skip
"""By panel and name of the command: its place and summary."""
NAMES = {name for commands in PANELS.values() for name in commands}

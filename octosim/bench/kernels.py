"""int8 matrix products at the sizes of real networks, against other libraries and against the machine's own limits.

All contestants work on the same operands in one process and take turns; what a library has to pack, convert or transpose for a
call is part of its time.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from octosim import core
from octosim.bench import calibrate, peers
from octosim.errors import ArgumentError, OctosimError
from octosim.files import environment
from octosim.numerics import ACCUMULATORS, Requantization, Rounding

Array = np.ndarray[Any, Any]

# M x K x N of the forward pass, with the batch size that the network is trained at.
SHAPES: dict[str, tuple[int, int, int]] = {
    "lenet5 conv1 b128": (100352, 25, 6),
    "lenet5 conv2 b128": (12800, 150, 16),
    "lenet5 fc1 b128": (128, 400, 120),
    "simplecnn conv1 b100": (57600, 25, 30),
    "simplecnn fc1 b100": (100, 4320, 100),
    "vgg11 conv2 b50": (39200, 576, 128),
    "vgg11 conv4 b50": (28800, 2304, 256),
    "vgg11 conv8 b50": (3200, 4608, 512),
    "vgg11 fc1 b50": (50, 8192, 4096),
    "resnet20 stage1 b128": (131072, 144, 16),
    "resnet20 stage2 b128": (32768, 288, 32),
    "resnet20 stage3 b128": (8192, 576, 64),
    "cube 1024": (1024, 1024, 1024),
}
PEERS = ("torch", "onnxruntime", "apytypes")
"""apytypes adds one product at a time and takes minutes for a layer: it is measured at the accumulators only."""

COUNTED = ("acc32", "acc24", "acc16", "acc16-wrap", "acc12", "acc8", "vpdpbusds", "maddubs")
"""Accumulators whose rates are measured, step by step and with accounting (u8 x s8 for the last two)."""

ELEMENTS = 64 << 20
"""Elements of the arrays on which passes over memory are measured: 256 MiB in float32, past any last-level cache."""


def passes(m: int, k: int, n: int) -> dict[str, tuple[tuple[int, int, int], str]]:
    """The three products of a layer as (M, K, N), and which operand is stored transposed."""
    return {"forward": ((m, k, n), "b"), "dX": ((m, n, k), ""), "dW": ((n, m, k), "a")}


def _operands(shape: tuple[int, int, int], transposed: str) -> tuple[Array, Array]:
    """int8 operands in +-127, stored as a network has them."""
    m, k, n = shape
    rng = np.random.default_rng(m * 31 + k)
    a = rng.integers(-127, 128, (k, m) if transposed == "a" else (m, k), dtype=np.int8)
    b = rng.integers(-127, 128, (n, k) if transposed == "b" else (k, n), dtype=np.int8)
    return a, b


def _onnxruntime_call(a: Array, b: Array, transposed: str, threads: int, *, unsigned: bool) -> Callable[[], Array]:
    """MatMulInteger.  unsigned: on uint8 x int8, its fast path, a shifted by 128 and its zero point 128."""
    onnx, runtime = peers.onnx_modules()
    helper, types = onnx.helper, onnx.TensorProto
    left_type = types.UINT8 if unsigned else types.INT8
    infos = [helper.make_tensor_value_info(x, t, [None, None]) for x, t in (("a", left_type), ("b", types.INT8))]
    zero = helper.make_tensor("z", left_type, [], [128 if unsigned else 0])
    node = helper.make_node("MatMulInteger", ["a", "b", "z"], ["c"])
    graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info("c", types.INT32, [None, None])], [zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its idle pool holds a core in the others' turns
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def shifted(x: Array) -> Array:
        return x.view(np.uint8) ^ np.uint8(128) if unsigned else x

    ready = shifted(a) if transposed != "a" else None

    def call() -> Array:
        left = ready if ready is not None else shifted(np.ascontiguousarray(a.T))
        right = np.ascontiguousarray(b.T) if transposed == "b" else b
        result: Array = session.run(None, {"a": left, "b": right})[0]
        return result

    return call


def _torch_call(a: Array, b: Array, transposed: str, threads: int) -> Callable[[], Array]:
    torch = peers.torch_module()
    torch.set_num_threads(threads)
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    left, right = (ta.t() if transposed == "a" else ta), (tb.t() if transposed == "b" else tb)
    return lambda: torch._int_mm(left, right).numpy()


Maker = Callable[[Array, Array, str, int], Callable[[], Array]]
PRODUCTS: dict[str, dict[str, Maker]] = {
    "torch": {"int8 x int8": _torch_call},
    "onnxruntime": {
        # On x86 without VNNI it adds pairs of products in 16 bits, which saturate.
        "uint8 x int8": functools.partial(_onnxruntime_call, unsigned=True),
        "int8 x int8": functools.partial(_onnxruntime_call, unsigned=False),
    },
}
"""How each peer multiplies int8 matrices: by the types of its operands, the fastest first."""


def _errors(peer: str, operands: str, result: Array, exact: Array) -> list[dict[str, Any]]:
    """Nothing where a peer's product is right, else how many of its sums are wrong, and by how much at most."""
    error = np.abs(result.astype(np.int64) - exact)
    wrong = int(np.count_nonzero(error))
    found = {"peer": peer, "operands": operands, "wrong": wrong, "sums": error.size, "largest": int(error.max(initial=0))}
    return [found] if wrong else []


def _right_call(
    peer: str, a: Array, b: Array, transposed: str, exact: Array
) -> tuple[str, Callable[[], Array] | None, float, list[dict[str, Any]]]:
    """The peer's first product that is right on this processor: operands, call (None: none is right), the seconds that it took
    here, errors of wrong ones."""
    wrong: list[dict[str, Any]] = []
    for operands, maker in PRODUCTS[peer].items():
        call = maker(a, b, transposed, core.threads())
        begun = time.perf_counter()
        result = call()
        took = time.perf_counter() - begun
        errors = _errors(peer, operands, result, exact)
        if not errors:
            return operands, call, took, wrong
        wrong += errors
    return "", None, 0.0, wrong


REST_S = 0.01
"""Pause before a contestant's turn: thread pools spin for milliseconds after their last call and would hold its cores."""
TURN_S = 0.02
LONG_S = 1.0
"""A peer's product that takes longer is not repeated: torch._int_mm without AMX or VNNI takes up to a minute for one."""


def _median_seconds(
    calls: dict[str, Callable[[], Any]], budget: float, first: Mapping[str, float] | None = None
) -> dict[str, float]:  # fmt: skip
    """Median times of calls, the contestants taking turns for about `budget` seconds each, three turns at least.

    A turn is a rest, a call that does not count, and as many as fit in TURN_S, two at least.  first: seconds of a call that a
    contestant made before; where they are over LONG_S they are its time.
    """
    known = {name: took for name, took in (first or {}).items() if took > LONG_S}
    calls = {name: call for name, call in calls.items() if name not in known}
    times: dict[str, list[float]] = {name: [] for name in calls}
    started, turns = time.perf_counter(), 0
    while turns < 3 or time.perf_counter() - started < budget * len(calls):
        turns += 1
        for name, call in calls.items():
            time.sleep(REST_S)
            call()
            begun = before = time.perf_counter()
            some: list[float] = []
            while len(some) < 2 or before - begun < TURN_S:
                call()
                now = time.perf_counter()
                some.append(now - before)
                before = now
            times[name] += some
    return known | {name: statistics.median(values) for name, values in times.items()}


def peak_ops_s(at_least: float = 0.0, tries: int = 5) -> float:
    """Operations a second from registers, with the instruction set and threads in use.

    at_least: a rate that a product reached; no product beats the peak, so a peak below it was measured while another program
    held a core, and is measured again.
    """
    best = 0.0
    for _ in range(tries):
        best = max(best, 2 * calibrate.peak_mac_s())
        if best >= at_least:
            break
    return best


def triad_bytes_s(elements: int = 32 << 20) -> float:
    """Bytes a second of STREAM's triad, the best of seven, on arrays beyond any cache (128 MiB each if not told otherwise)."""
    a, b, c = (np.ones(elements, np.float32) for _ in range(3))
    times = []
    for _ in range(7):
        before = time.perf_counter()
        core.stream_triad(a, b, c, 3.0)
        times.append(time.perf_counter() - before)
    return 12 * elements / min(times)


def _isas(cube: int, seconds: float) -> list[dict[str, Any]]:
    """One product with each instruction set of this CPU, and what that set's multiply-accumulates reach from registers."""
    a, b = _operands((cube, cube, cube), "")
    out, before, rows = np.empty((cube, cube), np.int32), core.isa(), []
    try:
        for isa in [name for name, here in core.isas().items() if here and name != "ref"]:
            core.set_isa(isa)
            time_s = _median_seconds({isa: functools.partial(core.gemm, a, b, out=out)}, seconds)[isa]
            rate = 2 * cube**3 / time_s
            peak = peak_ops_s(rate)
            rows.append({"isa": isa, "cube": cube, "ops_s": rate, "peak_ops_s": peak, "of_peak": rate / peak})
    finally:
        core.set_isa(before)
    return rows


def _apytypes_call(a: Array, b: Array) -> Callable[[], Any]:
    """APyTypes' product with an accumulator context of 32 bits.  It neither saturates nor wraps in it (version 0.5)."""
    module = peers.apytypes_module()
    left, right = (module.APyFixedArray.from_float(x.astype(np.float64), int_bits=9, frac_bits=0) for x in (a, b))

    def call() -> Any:
        with module.APyFixedAccumulatorContext(int_bits=32, frac_bits=0):
            return left @ right

    return call


def _accumulators(cube: int, seconds: float, against_apytypes: bool) -> list[dict[str, Any]]:
    """MAC/s of products summed step by step, with accounting; apytypes on a product of an eighth of the side."""
    rows: list[dict[str, Any]] = []
    for name in COUNTED:
        how = ACCUMULATORS[name]
        a, b = _operands((cube, cube, cube), "")
        if how.pair_bits or name.startswith("vpdp"):
            a = a.view(np.uint8)
        out = np.empty((cube, cube), np.int32)
        time_s = _median_seconds({name: functools.partial(core.gemm_counted, a, b, how, out=out)}, seconds)[name]
        rows.append({"accumulator": name, "cube": cube, "macs_s": cube**3 / time_s})
    if against_apytypes:
        side = cube // 8
        a, b = _operands((side, side, side), "")
        how = ACCUMULATORS["acc32"]
        calls: dict[str, Callable[[], Any]] = {
            "octosim": functools.partial(core.gemm_counted, a, b, how), "apytypes": _apytypes_call(a, b)
        }  # fmt: skip
        wrong = _errors("apytypes", "9-bit x 9-bit", calls["apytypes"]().to_numpy(), core.gemm(a, b))
        times = _median_seconds(calls, seconds)
        rates = {who: side**3 / time_s for who, time_s in times.items()}
        row = {"accumulator": "acc32", "cube": side, "macs_s": rates["octosim"], "wrong": wrong}
        if not wrong:
            row |= {"apytypes_macs_s": rates["apytypes"], "ratio": rates["octosim"] / rates["apytypes"]}
        rows.append(row)
    return rows


def _codes(elements: int, seconds: float) -> list[dict[str, Any]]:
    """Bandwidth, by STREAM's rule (every array once), of passes to and from int8 codes, and of a copy of the float32 array."""
    x, copied = np.linspace(-200, 200, elements, dtype=np.float32), np.empty(elements, np.float32)
    q, channels = np.empty(elements, np.int8), 64
    acc, made = (array[: elements // channels * channels].reshape(-1, channels) for array in (x.view(np.int32), q))
    threads = core.threads()
    parts = [slice(elements * i // threads, elements * (i + 1) // threads) for i in range(threads)]
    fixed = [np.full(channels, value, np.int32) for value in (1 << 30, 40)]
    scale = np.full(channels, 1e-7, np.float32)
    nearest = [Rounding.HALF_EVEN, Rounding.HALF_AWAY, Rounding.HALF_UP, Rounding.FLOOR, Rounding.TOWARD_ZERO]
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            list(pool.map(lambda part: np.copyto(copied[part], x[part]), parts))

        calls: dict[str, tuple[int, Callable[[], Any]]] = {"copy float32": (8, copy)}
        for rounding in nearest:
            calls[f"quantize {rounding.value}"] = (5, functools.partial(core.quantize, x, 0.5, rounding=rounding, out=q))
        stochastic = functools.partial(core.quantize, x, 0.5, rounding=Rounding.STOCHASTIC, random=(1, 2, 3), out=q)
        calls["quantize stochastic"] = (5, stochastic)
        calls["dequantize"] = (5, functools.partial(core.dequantize, q, 0.5, out=copied))
        calls["requantize float scale"] = (5, functools.partial(core.requantize_float, acc, scale, out=made))
        kinds: list[Rounding | Requantization] = [*nearest, Requantization.GEMMLOWP]
        for kind in kinds:
            shift = fixed[1] - 31 if kind is Requantization.GEMMLOWP else fixed[1]
            call = functools.partial(core.requantize, acc, fixed[0], shift, rounding=kind, out=made)
            calls[f"requantize {kind.value}"] = (5, call)
        by_shift = functools.partial(core.requantize, acc, 1, 20, rounding=Rounding.PSEUDO_STOCHASTIC, out=made)
        calls["requantize pseudo-stochastic"] = (5, by_shift)
        times = _median_seconds({name: call for name, (_, call) in calls.items()}, seconds)
    rates = {name: calls[name][0] * elements / time_s for name, time_s in times.items()}
    return [{"name": n, "bytes_s": rate, "of_copy": rate / rates["copy float32"]} for n, rate in rates.items()]


def kernel_bench(
    against: list[str],
    *,
    seconds: float,
    command: str,
    shapes: dict[str, tuple[int, int, int]] = SHAPES,
    elements: int = ELEMENTS,
    cube: int = 512,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Measures the int8 products of some layers' shapes in all three passes, with the instruction set and threads in use.

    against: of PEERS, measured on the same operands; each result is compared with ours, exactly.  A product that is wrong on
    this processor stands under "wrong" and is not timed; the peer's next operand types are (PRODUCTS), or none.  seconds: about
    how long each contestant runs at each shape; a peer's product of over LONG_S is not repeated.  elements: of the arrays of
    the passes over memory.  Returns a record: rates in operations a second (one MAC is two), times in seconds; "rows" are
    products, "isas" 1024 cubed with each instruction set against its own register peak, "accumulators" MAC/s of counted
    products, "codes" the bandwidth of quantizing against that of a copy.
    """
    for name in against:
        if name not in PEERS:
            raise ArgumentError(f"{{against}}: unknown peer '{name}' for kernels (known: {', '.join(PEERS)})")
    rows: list[dict[str, Any]] = []
    todo = [(name, pass_, *how) for name, shape in shapes.items() for pass_, how in passes(*shape).items()]
    products = [name for name in against if name in PRODUCTS]
    for done, (name, pass_, shape, transposed) in enumerate(todo):
        a, b = _operands(shape, transposed)
        m, k, n = shape
        out = np.empty((m, n), np.int32)
        calls: dict[str, Callable[[], Any]] = {
            "octosim": functools.partial(core.gemm, a, b, transpose_a=transposed == "a", transpose_b=transposed == "b", out=out)
        }
        exact, types, first, wrong = calls["octosim"](), {}, {}, []
        for peer in products:
            types[peer], call, first[peer], errors = _right_call(peer, a, b, transposed, exact)
            wrong += errors
            if call:
                calls[peer] = call
        times = _median_seconds(calls, seconds, first)
        ours, operations = times["octosim"], 2 * m * k * n
        moved = m * k + k * n + 4 * m * n
        row: dict[str, Any] = {
            "shape": name, "pass": pass_, "m": m, "k": k, "n": n, "time_s": ours, "ops_s": operations / ours,
            "ops_per_byte": operations / moved,
            "against": {
                peer: {"operands": types[peer], "time_s": times[peer], "ratio": times[peer] / ours}
                for peer in products
                if peer in times
            },
            "wrong": wrong,
        }  # fmt: skip
        if row["against"]:
            row["ratio"] = min(peer["ratio"] for peer in row["against"].values())
        rows.append(row)
        if progress:
            progress(0.9 * (done + 1) / len(todo))
    peak, bandwidth = peak_ops_s(max(row["ops_s"] for row in rows)), triad_bytes_s()
    for row in rows:
        row["of_peak"] = row["ops_s"] / peak
        row["of_roof"] = row["ops_s"] / min(peak, row["ops_per_byte"] * bandwidth)
    record = {
        "format": 1, "kind": "kernels", "environment": environment(core.isa(), core.threads()), "command": command,
        "peers": {peer: version(peer) for peer in against},
        "limits": {"peak_ops_s": peak, "triad_bytes_s": bandwidth}, "rows": rows,
        "isas": _isas(2 * cube, seconds), "accumulators": _accumulators(cube, seconds, "apytypes" in against),
        "codes": _codes(elements, seconds),
    }  # fmt: skip
    if progress:
        progress(1.0)
    if ratios := [row["ratio"] for row in rows if "ratio" in row]:
        record["ratio"] = statistics.geometric_mean(ratios)
    return record


def wrong_peers(record: dict[str, Any]) -> list[str]:
    """A sentence for each peer's product that was wrong on the processor of the record: how often, how far, what was timed."""
    cases: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
    for row in record["rows"] + record["accumulators"]:
        where = f"{row['shape']} {row['pass']}" if "shape" in row else f"{row['accumulator']}, {row['cube']} cubed"
        for case in row.get("wrong", ()):
            cases.setdefault((case["peer"], case["operands"]), []).append((where, case))
    sentences = []
    for (peer, operands), rows in cases.items():
        where, worst = max(rows, key=lambda each: each[1]["largest"])
        timed = {row["against"][peer]["operands"] for row in record["rows"] if row["wrong"] and peer in row["against"]}
        sentences.append(
            f"{peer} {record['peers'][peer]} is wrong here ({operands}) in {len(rows)} products, most in {where}: "
            f"{worst['wrong']} of {worst['sums']} sums, by up to {worst['largest']}; "
            f"{' and '.join(sorted(timed - {operands})) or 'nothing of it'} is timed there"
        )
    return sentences


def plot_roofline(record: dict[str, Any], path: Path) -> None:
    """The rates of a record below the machine's roof: operations a byte against operations a second, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    peak, bandwidth = record["limits"]["peak_ops_s"], record["limits"]["triad_bytes_s"]
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    x = np.geomspace(4, 2000, 200)
    axes.loglog(x, np.minimum(peak, x * bandwidth) / 1e9, color="black", label="roof: registers, STREAM triad")
    # Okabe-Ito, with shapes for those who see no colour
    for pass_, colour, marker in (("forward", "#0072B2", "o"), ("dX", "#E69F00", "s"), ("dW", "#009E73", "^")):
        rows = [row for row in record["rows"] if row["pass"] == pass_]
        axes.loglog([r["ops_per_byte"] for r in rows], [r["ops_s"] / 1e9 for r in rows], marker, color=colour, label=pass_)
    env = record["environment"]
    axes.set(xlabel="operations per byte of operands and result", ylabel="GOPS",
             title=f"int8 products, {env['cpu']}, {env['isa']}, {env['threads']} threads")  # fmt: skip
    axes.legend()
    axes.grid(which="both", alpha=0.3)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise OctosimError(f"cannot write {path}: {error}") from None
    finally:
        pyplot.close(figure)

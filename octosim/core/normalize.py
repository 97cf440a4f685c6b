"""Batch normalization, addition and ReLU, with the passes over memory that stand beside them in a network done in the same."""

from __future__ import annotations

from typing import Any

from octosim.core.call import F32, READS, S8, U8, WRITES, Array, CoreError, Range, costs, ffi, lib, ok, output, pointer
from octosim.core.layers import Pool, matrix, pool_struct
from octosim.core.lazy import LazyAdd, LazyDequant, Values, tensor


def _matrix(x: Values) -> tuple[int, int]:
    return matrix(x.acc if isinstance(x, LazyDequant) else x)


def sign_bytes(count: int) -> int:
    """Bytes that hold a bit for each of `count` elements."""
    return -(-count // 8)


def _relu_mask(relu_mask: Array | None, count: int, access: str = WRITES) -> Any:
    return ffi.NULL if relu_mask is None else pointer("relu_mask", relu_mask, U8, (sign_bytes(count),), access=access)


def _range(wanted: bool) -> tuple[Range | None, Any]:
    """A range to be found, and its pointer."""
    found = Range() if wanted else None
    return found, found.at if found else ffi.NULL


def _statistics(
    cols: int, gamma: Array, beta: Array, running_mean: Array, running_var: Array
) -> tuple[list[Any], list[Any], Array, Array]:  # fmt: skip
    """Of a forward pass: pointers of gamma and beta, and of the running statistics and the batch's; these."""
    (mean, pm), (inv_std, ps) = output("mean", None, F32, (cols,)), output("inv_std", None, F32, (cols,))
    given = [pointer(n, v, F32, (cols,)) for n, v in (("gamma", gamma), ("beta", beta))]
    running = [pointer(n, v, F32, (cols,), True) for n, v in (("running_mean", running_mean), ("running_var", running_var))]
    return given, [*running, pm, ps], mean, inv_std


def _column_gradients(
    cols: int, gamma: Array, mean: Array, inv_std: Array
) -> tuple[list[Any], list[Any], Array, Array]:  # fmt: skip
    """Of a backward pass: pointers of the columns that it takes, and of dgamma and dbeta; these."""
    (dgamma, pg), (dbeta, pb) = output("dgamma", None, F32, (cols,)), output("dbeta", None, F32, (cols,))
    columns = [pointer(n, v, F32, (cols,)) for n, v in (("gamma", gamma), ("mean", mean), ("inv_std", inv_std))]
    return columns, [pg, pb], dgamma, dbeta


def _values_or_codes(x: Array, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Pointers of x in float32, and of the int8 codes of its normalized values: one of them."""
    return (ffi.NULL, pointer("x", x, S8, shape)) if x.dtype == S8 else (pointer("x", x, F32, shape), ffi.NULL)


def batchnorm_forward(
    x: Values,
    gamma: Array,
    beta: Array,
    running_mean: Array,
    running_var: Array,
    *,
    eps: float,
    momentum: float,
    relu: bool = False,
    codes: Array | None = None,
    relu_mask: Array | None = None,
    find_range: bool = False,
    out: Array | None = None,
) -> tuple[Array, Array, Array, Range | None]:
    """Normalizes over all axes but the last with the batch's statistics and updates the running ones in place; then, with
    relu, max(., 0).  x: float32, or a LazyDequant whose addend belongs to the channels.  out may be x's memory.

    codes: int8 of x's shape, gets (x - mean) inv_std in steps of 1/16, within +-127 of them: what `batchnorm_backward` can use
    in the place of x.  relu_mask: uint8 (sign_bytes(size),), gets the bits y > 0, which it needs after a ReLU.
    Returns y, the batch's mean and 1 / sqrt(variance + eps), each (channels,), and y's least and largest value if asked for
    (NotFiniteError where there is a NaN or an infinity).
    """
    x_tensor, (rows, cols) = tensor("x", x), _matrix(x)
    out, p = output("out", out, F32, x.shape)
    given, statistics, mean, inv_std = _statistics(cols, gamma, beta, running_mean, running_var)
    kept = ffi.NULL if codes is None else output("codes", codes, S8, x.shape)[1]
    found, pr = _range(find_range)
    ok(lib.octo_batchnorm_forward(rows, cols, x_tensor, *given, eps, momentum, *statistics, relu, p, kept,
                                  _relu_mask(relu_mask, out.size), pr))  # fmt: skip
    return out, mean, inv_std, found


costs("octo_batchnorm_forward", x=2)


def batchnorm_inference(
    x: Values,
    gamma: Array,
    beta: Array,
    mean: Array,
    var: Array,
    *,
    eps: float,
    relu: bool = False,
    out: Array | None = None,
) -> Array:
    """Normalizes with the running statistics; then, with relu, max(., 0).  x as in `batchnorm_forward`."""
    x_tensor, (rows, cols) = tensor("x", x), _matrix(x)
    out, p = output("out", out, F32, x.shape)
    columns = [pointer(n, v, F32, (cols,)) for n, v in (("gamma", gamma), ("beta", beta))]
    running = [pointer(n, v, F32, (cols,)) for n, v in (("mean", mean), ("var", var))]
    ok(lib.octo_batchnorm_inference(rows, cols, x_tensor, *columns, eps, *running, relu, p))
    return out


def batchnorm_backward(
    x: Array,
    dy: Values,
    gamma: Array,
    mean: Array,
    inv_std: Array,
    *,
    relu_mask: Array | None = None,
    find_range: bool = False,
    out: Array | None = None,
) -> tuple[Array, Array, Array, Range | None]:
    """dx, dgamma, dbeta of `batchnorm_forward`, and dx's least and largest value if asked for; out may be dy's memory.

    x: float32, or the int8 codes of its normalized values.  relu_mask: of a ReLU behind the normalization; dy counts where they
    are set.
    """
    if dy.shape != x.shape:
        raise CoreError(f"dy must have shape {x.shape}, not {dy.shape}")
    dy_tensor, (rows, cols) = tensor("dy", dy), _matrix(dy)
    out, p = output("out", out, F32, x.shape)
    columns, grads, dgamma, dbeta = _column_gradients(cols, gamma, mean, inv_std)
    of_x, mask = _values_or_codes(x, x.shape), _relu_mask(relu_mask, x.size, READS)
    found, pr = _range(find_range)
    ok(lib.octo_batchnorm_backward(rows, cols, dy_tensor, *of_x, mask, *columns, p, *grads, pr))
    return out, dgamma, dbeta, found


costs("octo_batchnorm_backward", x=2, dy=2, relu_mask=2)


def batchnorm_maxpool(
    g: Pool,
    x: Values,
    gamma: Array,
    beta: Array,
    running_mean: Array,
    running_var: Array,
    *,
    eps: float,
    momentum: float,
    codes: Array | None = None,
    find_range: bool = False,
    out: Array | None = None,
    argmax: Array | None = None,
) -> tuple[Array, Array, Array, Array, Range | None]:
    """`batchnorm_forward` with a ReLU, then `maxpool`, without y between them in memory; g: stride == kernel.

    x, codes: as in `batchnorm_forward`.  Returns the largest of each window, its position in the window (uint8; kernel^2 where
    none is above 0), the batch's mean and 1 / sqrt(variance + eps), and the least and largest of the first if asked for.
    """
    x_tensor, cols = tensor("x", x, g.x_shape), g.channels
    out, p = output("out", out, F32, g.y_shape)
    argmax, where = output("argmax", argmax, U8, g.y_shape)
    given, statistics, mean, inv_std = _statistics(cols, gamma, beta, running_mean, running_var)
    kept = ffi.NULL if codes is None else output("codes", codes, S8, g.x_shape)[1]
    found, pr = _range(find_range)
    ok(lib.octo_batchnorm_maxpool_forward(pool_struct(g), x_tensor, *given, eps, momentum, *statistics, p, where, kept, pr))
    return out, argmax, mean, inv_std, found


costs("octo_batchnorm_maxpool_forward", x=2)


def batchnorm_maxpool_backward(
    g: Pool,
    x: Array,
    dy: Values,
    argmax: Array,
    gamma: Array,
    mean: Array,
    inv_std: Array,
    *,
    find_range: bool = False,
    out: Array | None = None,
) -> tuple[Array, Array, Array, Range | None]:
    """dx, dgamma, dbeta of `batchnorm_maxpool`, and dx's least and largest value if asked for; out may not be dy's memory.

    x: float32, or the int8 codes of its normalized values.
    """
    dy_tensor, cols = tensor("dy", dy, g.y_shape), g.channels
    where = pointer("argmax", argmax, U8, g.y_shape)
    out, p = output("out", out, F32, g.x_shape)
    columns, grads, dgamma, dbeta = _column_gradients(cols, gamma, mean, inv_std)
    of_x = _values_or_codes(x, g.x_shape)
    found, pr = _range(find_range)
    ok(lib.octo_batchnorm_maxpool_backward(pool_struct(g), dy_tensor, where, *of_x, *columns, p, *grads, pr))
    return out, dgamma, dbeta, found


costs("octo_batchnorm_maxpool_backward", x=2, dy=2, argmax=2)


def relu(
    x: Array, *, relu_mask: Array | None = None, find_range: bool = False, out: Array | None = None
) -> tuple[Array, Range | None]:
    """max(x, 0), and its least and largest value if asked for; out may be x.  relu_mask as in `batchnorm_forward`."""
    out, p = output("out", out, F32, x.shape)
    found, pr = _range(find_range)
    ok(lib.octo_relu_f32(x.size, pointer("x", x, F32), p, _relu_mask(relu_mask, x.size), pr))
    return out, found


def add(
    a: Values,
    b: Values,
    *,
    relu: bool = False,
    relu_mask: Array | None = None,
    find_range: bool = False,
    out: Array | None = None,
) -> tuple[Array, Range | None]:
    """a + b; then, with relu, max(., 0); and its least and largest value if asked for.  a, b: float32, or a LazyDequant whose
    addend belongs to the channels; out may be the memory of either.  relu_mask as in `batchnorm_forward`."""
    pa, pb, (rows, cols) = tensor("a", a), tensor("b", b, a.shape), _matrix(a)
    out, p = output("out", out, F32, a.shape)
    found, pr = _range(find_range)
    ok(lib.octo_add(rows, cols, pa, pb, relu, p, _relu_mask(relu_mask, out.size), pr))
    return out, found


def relu_backward(relu_mask: Array, dy: Values | LazyAdd, *, out: Array | None = None) -> Array:
    """dy where the sign is set, else 0; out may be the memory of dy, or of either of the two that it is the sum of."""
    a, b = (dy.a, dy.b) if isinstance(dy, LazyAdd) else (dy, None)
    pa, pb, (rows, cols) = tensor("dy", a), ffi.NULL if b is None else tensor("dy", b, a.shape), _matrix(a)
    out, p = output("out", out, F32, a.shape)
    given = pointer("relu_mask", relu_mask, U8, (sign_bytes(out.size),))
    ok(lib.octo_relu_backward(rows, cols, given, pa, pb, p))
    return out

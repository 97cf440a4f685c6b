"""The only package that touches C: NumPy arrays in and out, dtype and shape checks, status -> CoreError.

Arrays are C-contiguous unless a docstring says otherwise.  `out` may be given to reuse memory; it is returned.  Results do not
depend on the instruction set or on the number of threads, to the bit.  Images are NHWC, convolution weights
[filter][kernel_h][kernel_w][channel].  cext/octosim.h says what every function means, cext/*.inc its arithmetic.
"""

from octosim.core.blocks import (
    conv_input_grad_blocks,
    dequantize_blocks,
    gemm_blocks,
    quantize_blocks,
    quantize_windows,
    round_to_blocks,
)
from octosim.core.call import (
    CoreError,
    NotFiniteError,
    Number,
    Range,
    Scalar,
    Stream,
    Whole,
    isa,
    isas,
    scalar,
    set_isa,
    set_threads,
    step_number,
    threads,
)
from octosim.core.codes import (
    Codes,
    Pair,
    RowSums,
    Sums,
    Values,
    asymmetric_codes,
    copy,
    decode_mu8,
    dequantize,
    dequantize_rows,
    dequantize_sums,
    encode_mu8,
    exp,
    follow_range,
    images,
    join_ranges,
    log,
    memory_of,
    moments,
    normal,
    philox,
    product_scale,
    quantize,
    requantize,
    requantize_float,
    sum_range,
    symmetric_codes,
    value_range,
    values,
    zero_term,
)
from octosim.core.layers import (
    Pool,
    adam,
    affine,
    avgpool,
    avgpool_backward,
    column_sums,
    dropout,
    lac_backward,
    lac_fold,
    maxpool,
    maxpool_backward,
    peak,
    row_sums,
    sgd,
    softmax_cross_entropy,
    stream_triad,
)
from octosim.core.normalize import (
    add,
    batchnorm_backward,
    batchnorm_forward,
    batchnorm_inference,
    relu,
    relu_backward,
    sign_bytes,
)
from octosim.core.products import (
    ALWAYS_SAFE,
    Conv,
    conv_forward,
    conv_input_grad,
    conv_weight_grad,
    depthwise_forward,
    depthwise_input_grad,
    depthwise_weight_grad,
    gemm,
    gemm_counted,
    gemm_mu8,
)
from octosim.core.tape import CLOCKS, Failed, Tape

__all__ = [
    "ALWAYS_SAFE", "CLOCKS", "Codes", "Conv", "CoreError", "Failed", "NotFiniteError", "Number", "Pair", "Pool", "Range",
    "RowSums", "Scalar", "Stream", "Sums", "Tape", "Values", "Whole", "adam", "add", "affine", "asymmetric_codes",
    "avgpool", "avgpool_backward", "batchnorm_backward", "batchnorm_forward", "batchnorm_inference", "column_sums",
    "conv_forward", "conv_input_grad", "conv_input_grad_blocks", "conv_weight_grad", "copy", "decode_mu8",
    "depthwise_forward", "depthwise_input_grad", "depthwise_weight_grad", "dequantize", "dequantize_blocks",
    "dequantize_rows", "dequantize_sums", "dropout", "encode_mu8", "exp", "follow_range", "gemm", "gemm_blocks",
    "gemm_counted", "gemm_mu8", "images", "isa", "isas", "join_ranges", "lac_backward", "lac_fold", "log", "maxpool",
    "maxpool_backward", "memory_of", "moments", "normal", "peak", "philox", "product_scale", "quantize",
    "quantize_blocks", "quantize_windows", "relu", "relu_backward", "requantize", "requantize_float", "round_to_blocks",
    "row_sums", "scalar", "set_isa", "set_threads", "sgd", "sign_bytes", "softmax_cross_entropy", "step_number",
    "stream_triad", "sum_range", "symmetric_codes", "threads", "value_range", "values", "zero_term",
]  # fmt: skip

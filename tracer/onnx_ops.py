"""Which op of torch does what a node of ONNX does."""

SAME = {
    **dict.fromkeys(("Identity", "Dropout"), ""),
    "MatMul": "matmul",
    "Einsum": "einsum",
    "Conv": "convolution",
    "ConvTranspose": "convolution",
    "Add": "add.Tensor",
    "Sub": "sub.Tensor",
    "Mul": "mul.Tensor",
    "Div": "div.Tensor",
    "Pow": "pow.Tensor_Tensor",
    "Mod": "remainder.Tensor",
    "PRelu": "prelu",
    "Equal": "eq.Tensor",
    "Greater": "gt.Tensor",
    "GreaterOrEqual": "ge.Tensor",
    "Less": "lt.Tensor",
    "LessOrEqual": "le.Tensor",
    "And": "logical_and",
    "Or": "logical_or",
    "Xor": "logical_xor",
    "Not": "logical_not",
    "Max": "maximum",
    "Min": "minimum",
    "Where": "where.self",
    "Concat": "cat",
    "Attention": "scaled_dot_product_attention",
    "LayerNormalization": "layer_norm",
    "GroupNormalization": "group_norm",
    "InstanceNormalization": "instance_norm",
    "BatchNormalization": "batch_norm",
    "GatherElements": "gather",
    "ScatterND": "index_put",
    "ScatterElements": "scatter.src",
    **dict.fromkeys(("RMSNormalization", "SimplifiedLayerNormalization"), "rms_norm"),
}
"""Node -> the op of torch that reads all of its tensors; none for what hands its first one on."""

_PLAIN = """
    Neg Abs Exp Log Sqrt Reciprocal Sin Cos Tan Tanh Sinh Cosh Asin Acos Atan Sigmoid Relu Elu Selu
    Celu Gelu Mish Softplus Erf Floor Ceil Round Sign CumSum HardSwish TopK"""

OF_THE_FIRST = {
    **{name: name.lower() for name in _PLAIN.split()},
    "Tile": "repeat",
    "Swish": "silu",
    "LeakyRelu": "leaky_relu",
    "HardSigmoid": "hardsigmoid",
    "LogSoftmax": "log_softmax.int",
    "Softmax": "softmax.int",
    "Clip": "clamp",
    "Cast": "_to_copy",
    "IsNaN": "isnan",
    "IsInf": "isinf",
    "Pad": "constant_pad_nd",
    "Trilu": "tril",
    "OneHot": "one_hot",
    "NonZero": "nonzero",
    "ReduceMean": "mean.dim",
    "ReduceSum": "sum.dim_IntList",
    "ReduceMax": "amax",
    "ReduceMin": "amin",
    "ReduceProd": "prod.dim_int",
    "ReduceL1": "linalg_vector_norm",
    "ReduceL2": "linalg_vector_norm",
    "ReduceLogSumExp": "logsumexp",
    "ArgMax": "argmax",
    "ArgMin": "argmin",
    "GlobalAveragePool": "adaptive_avg_pool2d",
    "GlobalMaxPool": "adaptive_max_pool2d",
    "DepthToSpace": "pixel_shuffle",
    "SpaceToDepth": "pixel_unshuffle",
    "Resize": "upsample_nearest2d",
    "Reshape": "view",
    "Flatten": "view",
    "Squeeze": "squeeze.dims",
    "Unsqueeze": "unsqueeze",
    "Transpose": "permute",
    "Expand": "expand",
    "Slice": "slice.Tensor",
    "Split": "split_with_sizes",
}
"""Node -> the op of torch that reads its first tensor; the others are sizes and numbers."""

OF_NOTHING = {"ConstantOfShape": "full", "Range": "arange", "EyeLike": "eye"}
POOLS = {"MaxPool": "max_pool{}d", "AveragePool": "avg_pool{}d"}
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Slice", "Split")
SCALARS = ("Add", "Sub", "Mul", "Div", "Pow", "Where", "Equal", "Greater", "Less", "Max", "Min")
"""Nodes that may read one number, which an op of torch is told and does not read."""

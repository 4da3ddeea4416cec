"""Every tolerance of the test ladder, with its reason. Max abs differences of logits unless said otherwise.

"Measured" is the worst over all tiny configs on x86-64 with AVX-512; the bars leave room for the kernels of other CPUs.
"""

from __future__ import annotations

# fp32 export against Transformers in eager mode. Both compute in float32 and differ in the order of sums and in the
# fused kernels. Measured 4e-5 over 100 tokens and all chunk splits; the issue allows 1e-3.
FP32_LOGITS = 2e-4
# The same through LiteRT, whose kernels are others: measured 1.3e-5.
LITERT_FP32_LOGITS = 1e-4
# The same through numpy, which fuses nothing: measured 3.1e-5 against Transformers, 2.9e-5 against the ONNX export.
NUMPY_FP32_LOGITS = 1e-4
# The same, as probabilities: measured 8e-7. Dropping the softcap of 30 moves them by 4e-4 and that of 2 by 5e-2.
FP32_PROBABILITIES = 1e-5
# One graph against itself, prompt split otherwise: only the order of sums in attention and the kernel of a product
# (one row or many) differ. Measured 1.1e-5, and 1.3e-5 for the numpy decoder against itself.
SAME_GRAPH_LOGITS = 1e-4
# Quantized package, its products computed in float (accuracy_level 1), against the fp32 package of the dequantized
# weights: the same numbers multiplied in another order. Measured 1e-5.
DEQUANTIZED_LOGITS = 1e-4
# accuracy_level 4 also rounds activations to int8 per block of a row. That is a choice of speed over exactness, so
# the bar is relative: mean abs difference over the standard deviation of the logits. A random network amplifies it:
# measured 0.03 to 0.06.
INT8_ACTIVATIONS_RELATIVE = 0.15
# LiteRT rounds the activations of quantized products to int8 per row. One non-zero element a row survives that, so a
# product with a row of the identity is a column of the dequantized matrix: measured 6e-8 for values up to 0.5.
LITERT_COLUMN = 1e-6

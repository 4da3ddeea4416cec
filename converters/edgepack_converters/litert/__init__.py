"""LiteRT: a `.litertlm` bundle of TensorFlow Lite models, emitted without a tracer and without torch."""

from edgepack_converters.litert.emit import emit as emit
from edgepack_converters.litert.metadata import TextFacts as TextFacts
from edgepack_converters.litert.template import check_template as check_template

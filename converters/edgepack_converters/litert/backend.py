"""What an export asks of this backend."""

from edgepack_converters.litert.emit import emit as emit
from edgepack_converters.litert.metadata import TextFacts as TextFacts
from edgepack_converters.litert.template.check import check_template as check_template
from edgepack_converters.litert.tokenizer.process import choose_apart as choose_apart

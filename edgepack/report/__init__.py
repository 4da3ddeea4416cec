"""The faces of a validation: made of one value, `edgepack.validation.result.Report`."""

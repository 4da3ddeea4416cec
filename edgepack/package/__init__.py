"""A package on disk: the manifest, the folder, and what is believed of a stranger's."""

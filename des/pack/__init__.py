"""Writing: from a manifest to segments and heads."""

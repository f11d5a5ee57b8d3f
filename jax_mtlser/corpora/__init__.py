"""Corpora: from a layout on disk to a manifest of utterances."""

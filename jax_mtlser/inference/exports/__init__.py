"""A trained member in forms that others load: one file per format, each verified on real audio before it is done."""

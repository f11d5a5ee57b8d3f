"""A trained run behind HTTP: a page to try it in a browser, and an endpoint for programs."""

"""MMagic's import paths, for scripts that come from there."""

"""Sections of the page, one module per subject; each returns its HTML, or "" if there is nothing to show."""

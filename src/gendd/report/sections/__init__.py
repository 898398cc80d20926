"""The sections of the page, a module a subject; each gives its HTML, or "" where there is nothing to show."""

"""One record as a script that needs neither this package nor its results."""

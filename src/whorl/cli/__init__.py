"""The command line: a few lines per command over a public function; the only place that prints."""

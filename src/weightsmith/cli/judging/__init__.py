"""Commands that judge: suites, versions, methods on families, reports."""

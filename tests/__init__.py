#: Environment variable: where what `observer.py` finds is written. Here, as each service that is observed reads it.
VIOLATIONS = "CALOTYPE_TEST_VIOLATIONS"

#: Environment variable: where what `observer.py` finds is written. Here, as each service that is observed reads it.
VIOLATIONS = "CALOTYPE_TEST_VIOLATIONS"
#: What passwords cost in tests, where hundreds of services verify them: 1 ms, bcrypt's least. Otherwise it is 75 ms.
PASSWORD_COST = 4

"""Did the answer hold? Pure functions `verify(answer, **args) -> Verdict`; no model inside."""

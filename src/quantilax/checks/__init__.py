"""Checks: settings that mislead (lint), and causes of what went wrong in a run (diagnosis)."""

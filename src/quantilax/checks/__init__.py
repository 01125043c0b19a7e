"""Checks: misleading settings (lint), and causes of what went wrong in a run (diagnosis)."""

"""Reports on a study's results: tables, the verdict, figures, pages and a recommendation."""

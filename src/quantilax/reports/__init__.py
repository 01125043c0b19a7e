"""What is made of a study's results: tables, the verdict, figures, pages, a recommendation."""

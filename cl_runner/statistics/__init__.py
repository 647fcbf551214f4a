"""Statistics of several runs: orders x seeds as a design, intervals, paired tests. Numbers alone, no run folders."""

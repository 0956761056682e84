"""A StepPlan becomes a StepResult."""

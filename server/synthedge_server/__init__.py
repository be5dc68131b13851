"""The coordinator: enrolment, gap registry, matching and brokering; it never sees a sample."""

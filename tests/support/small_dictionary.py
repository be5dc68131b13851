"""A small valid consortium.toml that tests of the core change one line at a time."""

SMALL_DICTIONARY = """
schema_version = 1
name = "small"

[target]
column = "ill"
positive = "1"
definition = "ill within a year"

[[features]]
name = "sex"
kind = "binary"
levels = ["1", "2"]
level_names = ["female", "male"]
privacy = "measurement"

[[features]]
name = "age"
kind = "integer"
unit = "a"
plausible = [18, 110]
center = 50
scale = 10
cut_points = [40, 60, 70]
privacy = "age"

[[features]]
name = "bp"
kind = "continuous"
unit = "mm[Hg]"
plausible = [30, 200]
center = 94.0
scale = 14.0
cut_points = [80, 90, 100]
privacy = "measurement"
decimals = 0

[[features]]
name = "stage"
kind = "ordinal"
levels = ["I", "II", "III"]
center = 1
scale = 1
privacy = "measurement"

[[grids]]
name = "bp"
features = ["bp"]

[[grids]]
name = "sex x age"
features = ["sex", "age"]

[[grids]]
name = "stage"
features = ["stage"]

[policy]
disclosure = "dp"
epsilon = 1.0
epsilon_total = 4.0
min_count = 5
min_sites = 3
similarity = 0.70
rows_per_transfer = 20
"""

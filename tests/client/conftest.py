from enrolled import consortium, enrolled_once, pair
from server_fixtures import coordinator

__all__ = ["consortium", "coordinator", "enrolled_once", "pair"]

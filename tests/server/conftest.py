from server_fixtures import coordinator

__all__ = ["coordinator"]

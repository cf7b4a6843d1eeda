"""What we remember: the database (SQLAlchemy Core; SQLite or PostgreSQL), its migrations, the artifacts."""

-- Two processes may start at once, and IF NOT EXISTS alone does not bear that.
SELECT pg_advisory_xact_lock(7261);

-- Named in each statement: a role called `cap` would look for tables in CAP's own schema of that name first.
CREATE SCHEMA IF NOT EXISTS shop;

CREATE TABLE IF NOT EXISTS shop.orders (
    id       TEXT PRIMARY KEY,
    customer TEXT NOT NULL,
    amount   FLOAT8 NOT NULL
);

-- Not unique: if an order were ever invoiced twice, it would show.
CREATE TABLE IF NOT EXISTS shop.invoices (
    order_id TEXT NOT NULL,
    amount   FLOAT8 NOT NULL
);
CREATE INDEX IF NOT EXISTS invoices_by_order ON shop.invoices (order_id);

// Work for SQLite: the same statements here and in the guest, where Python's module runs them.

import { DatabaseSync } from 'node:sqlite';

export const STATEMENTS: readonly string[] = [
  'create table item (id integer primary key, name text, price real, kind integer, note blob)',
  'create index by_kind on item (kind, price)',
  `with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000)
   insert into item select i, printf('item-%05d-%x', (i * 7919) % 3001, i * i), (i * 37 % 1000) / 8.0, i % 13, randomblob(0) from n`,
  'create table sale as select (id * 31) % 3000 + 1 as item, id % 9 + 1 as count, date(2451545 + id % 700) as day from item, (select 1 union select 2)',
  'create index by_item on sale (item)',
  "create view total as select kind, sum(price * count) as sum, count(*) as sales from sale join item on item.id = sale.item group by kind",
  "update item set name = upper(name) || '!' where kind in (3, 5) and price > 50",
  'delete from item where id % 17 = 0 and kind <> 4',
];

export const QUERIES: readonly string[] = [
  'select kind, count(*), sum(price), min(name), max(name), avg(price) from item group by kind order by kind',
  'select * from total order by sum desc, kind',
  "select name, length(name), substr(name, 3, 4), instr(name, '7'), hex(substr(name, -2)) from item where name like '%-00%' order by name limit 25",
  'select strftime(\'%Y-%m\', day) as month, sum(count) from sale group by month order by month',
  'select a.id, b.id from item a join item b on a.price = b.price and a.kind = b.kind and a.id < b.id order by a.id, b.id limit 40',
  'select kind, id, rank() over (partition by kind order by price desc, id) as r from item where kind < 4 order by kind, r limit 30',
  'with recursive c(a, b, n) as (select 0, 1, 0 union all select b, a + b, n + 1 from c where n < 70) select max(a) from c',
  'select sum(abs(id * 2654435761 % 4294967296) % 1000), group_concat(distinct kind % 5) from item',
  'pragma integrity_check',
];

/** A line for each row: JSON of its values, with 17 digits for reals. */
const line = (values: readonly unknown[]): string =>
  values.map(value => typeof value === 'number' && !Number.isInteger(value) ? value.toExponential(15) : String(value)).join('|');

export function resultsHere(): string[] {
  using database = new DatabaseSync(':memory:');
  for (const statement of STATEMENTS) database.exec(statement);
  return QUERIES.flatMap(query => {
    const rows = database.prepare(query).all();
    return rows.map(row => line(Object.values(row)));
  });
}

/** In the guest: on a file, in two transactions, with the database closed and opened in between. */
export const PYTHON = `
import sqlite3, json
statements, queries = json.load(open('work.json'))
def opened():
    return sqlite3.connect('work.db')
for part in (statements[:4], statements[4:]):
    db = opened()
    for statement in part:
        db.execute(statement)
    db.commit()
    db.close()
def shown(value):
    if isinstance(value, float) and value != int(value):
        mantissa, exponent = ('%.15e' % value).split('e')
        return mantissa + 'e' + ('+' if int(exponent) >= 0 else '-') + str(abs(int(exponent)))
    if isinstance(value, float):
        return str(int(value))
    return 'null' if value is None else str(value)
db = opened()
for query in queries:
    for row in db.execute(query):
        print('|'.join(map(shown, row)))
db.close()
`;

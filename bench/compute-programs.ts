// Real programs of Debian arm64 packages for the benchmark of compute, each with a fixed amount of work that ends in a
// line or two of results. They are shell scripts; what a script needs is made beforehand, by `prepare`, in /tmp.

export interface Program {
  readonly name: string;
  /** Not measured. */
  readonly prepare?: string;
  readonly script: string;
}

/** Debian's packages that have the programs, and what they depend on. */
export const packages: readonly string[] = [
  'bc', 'coreutils', 'cpp-12', 'grep', 'gzip', 'lame', 'libpython3-stdlib', 'lua5.4', 'mawk', 'openssl',
  'python3-minimal', 'sed', 'sqlite3', 'xz-utils', 'zstd',
];

const ZERO_IV = '0'.repeat(32);
const KEY = '17'.repeat(16);
/** Bytes without a pattern, always the same. */
const noise = (bytes: number): string => `openssl enc -aes-128-ctr -K ${'5a'.repeat(16)} -iv ${ZERO_IV} -in /dev/zero 2>/dev/null | /usr/bin/head -c ${bytes}`;
const here = (path: string, text: string): string => `cat >${path} <<'END'\n${text}\nEND`;

const PYTHON = `
import math
def bodies(steps):
    p = [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 39.47], [4.84, -1.16, -0.10, 0.6, 2.8, -0.02, 0.037], [8.34, 4.12, -0.4, -1.01, 1.8, 0.008, 0.011]]
    for _ in range(steps):
        for i, a in enumerate(p):
            for b in p[i + 1:]:
                d = [a[k] - b[k] for k in range(3)]
                f = 0.001 / math.sqrt(sum(x * x for x in d)) ** 3
                for k in range(3):
                    a[3 + k] -= d[k] * b[6] * f
                    b[3 + k] += d[k] * a[6] * f
        for a in p:
            for k in range(3): a[k] += 0.001 * a[3 + k]
    return [x for a in p for x in a[:3]]
def words(count):
    seen, x = {}, 12345
    for _ in range(count):
        x = (x * 1103515245 + 12345) & 0x7fffffff
        word = "w%d" % (x % 5003)
        seen[word] = seen.get(word, 0) + len(word)
    return sorted(seen.items(), key=lambda item: (-item[1], item[0]))[:3]
class Tree:
    def __init__(self, depth): self.children = [Tree(depth - 1), Tree(depth - 1)] if depth else []
    def count(self): return 1 + sum(child.count() for child in self.children)
print(bodies(500), words(25000), Tree(12).count())`;

const LUA = `
local function queens(n)
  local count, columns, up, down = 0, {}, {}, {}
  local function place(row)
    if row > n then count = count + 1 return end
    for c = 1, n do
      if not (columns[c] or up[row + c] or down[row - c + n]) then
        columns[c], up[row + c], down[row - c + n] = true, true, true
        place(row + 1)
        columns[c], up[row + c], down[row - c + n] = nil, nil, nil
      end
    end
  end
  place(1)
  return count
end
local words = {}
for i = 1, 40000 do words[#words + 1] = string.format("%x", (i * 7919) % 65537) end
table.sort(words)
local sum = 0
for i, word in ipairs(words) do sum = (sum * 31 + #word * i + word:byte(1)) % 1000003 end
print(queens(7), sum, table.concat(words, ",", 1, 5))`;

const AWK = `
BEGIN {
  for (n = 2; n < 30000; n++) if (!(n in composite)) { primes++; for (k = n * n; k < 30000; k += n) composite[k] = 1 }
  x = 1
  for (i = 0; i < 50000; i++) { x = (x * 69069 + 5) % 1048576; key = "k" (x % 997); n1[key]++; text = text substr("abcdefgh", x % 8 + 1, 1); if (length(text) > 60) { gsub(/[ace]+/, "<&>", text); total += length(text); text = "" } }
  for (key in n1) check += n1[key] * substr(key, 2)
  print primes, check, total
}`;

/** A C source of many functions of different shapes. */
const C_SOURCE = `i=0; while [ $i -lt 24 ]; do cat <<END
struct s$i { int a; unsigned long b[$((i % 7 + 1))]; double d; };
static int f$i(struct s$i *p, int n) {
  int sum = $i;
  for (int k = 0; k < n; k++) {
    switch ((p->a + k) % 7) {
      case 0: sum += p->a * $((i * 3 + 1)); break;
      case 1: sum ^= (int)p->b[k % $((i % 7 + 1))]; break;
      case 2: p->d = p->d * 1.5 + sum; break;
      case 5: sum -= (int)p->d; break;
      default: sum = (sum << 3) | (sum >> 29 & 7);
    }
    p->b[k % $((i % 7 + 1))] += sum;
  }
  return sum;
}
int g$i(int n) { struct s$i v = { n, { $i }, $i.25 }; return f$i(&v, n) + f$i(&v, n / 2 + $i); }
END
i=$((i + 1)); done >source.c`;

const SQL = `
CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price REAL, shop INTEGER);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 15000)
  INSERT INTO item SELECT i, 'item ' || (i * 7919 % 10007), i * 1.25, i * 31 % 101 FROM n;
CREATE INDEX by_name ON item(name); CREATE INDEX by_shop ON item(shop, price);
SELECT shop, count(*), sum(price) FROM item GROUP BY shop ORDER BY 3 DESC LIMIT 3;
SELECT count(*) FROM item a JOIN item b ON a.name = b.name WHERE a.id < b.id;
UPDATE item SET price = price * 2 WHERE name LIKE '%77%';
SELECT sum(price), max(length(name)) FROM item WHERE name BETWEEN 'item 2' AND 'item 7';`;

const PING_PONG = `
import os
(a, b), (c, d) = os.pipe(), os.pipe()
if os.fork() == 0:
    os.close(b); os.close(c)
    while data := os.read(a, 1): os.write(d, data)
    os._exit(0)
for i in range(3000):
    os.write(b, b"x")
    assert os.read(c, 1) == b"x"
os.close(b)
print(os.wait()[1])`;

export const programs: readonly Program[] = [
  { name: 'integer', script: `echo 'scale=700; 4*a(1)' | BC_LINE_LENGTH=0 bc -l` },
  {
    name: 'text', prepare: `/usr/bin/seq 1 50000 | mawk '{ x = ($1 * 7919) % 150001; print x, "line" x % 1009, "word" x % 13 }' >text`,
    script: `/usr/bin/sort -k2,2 -k1,1n text | /usr/bin/md5sum; /bin/grep -cE 'line.*7 w.*d1?2$' text
      /bin/sed -E 's/([0-9]+)$/<\\1>/; s/line/LINE/' text | /usr/bin/tr a-m A-M | /usr/bin/wc; /usr/bin/uniq -f1 -c text | /usr/bin/tail -n1`,
  },
  { name: 'hash', prepare: `${noise(8 << 20)} >noise`, script: 'for d in sha256 sha1 md5 sha512 blake2b512 sha3-256; do openssl dgst -r -$d noise; done' },
  {
    name: 'cipher', prepare: `[ -f noise ] || ${noise(8 << 20)} >noise`,
    script: `for c in aes-128-cbc aes-128-ctr camellia-128-cbc; do openssl enc -$c -K ${KEY} -iv ${ZERO_IV} -in noise | openssl dgst -r -sha1; done
      openssl enc -chacha20 -K ${KEY}${KEY} -iv ${ZERO_IV} -in noise | openssl dgst -r -sha1`,
  },
  {
    name: 'gzip', prepare: `{ ${noise(100_000)}; /usr/bin/seq 1 30000; cat /usr/bin/lua5.4; } >mixed`,
    script: '/bin/gzip -6n <mixed >mixed.gz; /usr/bin/sha256sum <mixed.gz; /bin/gzip -dc <mixed.gz | /usr/bin/sha256sum',
  },
  { name: 'xz', script: '/usr/bin/xz -1 -T1 -c mixed >mixed.xz; /usr/bin/sha256sum <mixed.xz; /usr/bin/xz -dc mixed.xz | /usr/bin/sha256sum' },
  { name: 'zstd', script: '/usr/bin/zstd -q -5 --single-thread -c mixed >mixed.zst; /usr/bin/sha256sum <mixed.zst; /usr/bin/zstd -qdc mixed.zst | /usr/bin/sha256sum' },
  {
    name: 'floating-point', prepare: `${noise(500_000)} >sound`,
    script: 'lame --quiet -r -s 44.1 --signed -b 128 sound sound.mp3; /usr/bin/sha256sum <sound.mp3; lame --quiet --decode sound.mp3 sound.wav; /usr/bin/sha256sum <sound.wav',
  },
  { name: 'python', prepare: here('program.py', PYTHON), script: 'python3 program.py' },
  { name: 'lua', prepare: here('program.lua', LUA), script: 'lua5.4 program.lua' },
  { name: 'awk', prepare: here('program.awk', AWK), script: 'mawk -f program.awk' },
  {
    name: 'compiler', prepare: C_SOURCE,
    script: '/usr/lib/gcc/aarch64-linux-gnu/12/cc1 -quiet -O2 source.c -o source.s; /usr/bin/sha256sum <source.s',
  },
  { name: 'database', prepare: here('program.sql', SQL), script: 'sqlite3 :memory: <program.sql' },
  { name: 'system-calls', script: '/bin/dd if=/dev/zero of=/dev/null bs=1 count=100000 2>&1 | /usr/bin/head -n2' },
  { name: 'context-switches', prepare: here('switch.py', PING_PONG), script: 'python3 switch.py' },
  { name: 'processes', script: 'i=0; while [ $i -lt 60 ]; do /bin/true || echo bad; i=$((i+1)); done; echo $i' },
];

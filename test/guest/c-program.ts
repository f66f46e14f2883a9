// A C program, part written and part drawn at random, whose output says whether compiler and processor did their work.
// Only what the standard defines, the same for each ABI: no plain `char`, no overflow of signed numbers, no libm.

import type { SeededRandom } from '../../src/base/random.ts';

const FUNCTIONS = 24;
const STATEMENTS = 12;
const VARIABLES = 5;

const WRITTEN = `
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
#include <setjmp.h>

static uint32_t crc(const unsigned char *p, size_t n) {
  uint32_t c = ~0u;
  while (n--) { c ^= *p++; for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1; }
  return ~c;
}
static uint32_t seed = 12345;
static uint32_t draw(uint32_t bound) { seed = seed * 1664525u + 1013904223u; return (seed >> 8) % bound; }

/* LZ77 with a table of the last place of each three bytes. */
static size_t pack(const unsigned char *in, size_t n, unsigned char *out) {
  static int32_t last[4096];
  size_t o = 0;
  memset(last, -1, sizeof last);
  for (size_t i = 0; i < n;) {
    size_t best = 0, from = 0;
    if (i + 3 < n) {
      uint32_t h = (in[i] * 33u * 33u + in[i + 1] * 33u + in[i + 2]) & 4095;
      int32_t at = last[h];
      last[h] = (int32_t)i;
      if (at >= 0 && i - at < 65536) { from = i - at; while (best < 255 && i + best < n && in[at + best] == in[i + best]) best++; }
    }
    if (best >= 4) { out[o++] = 1; out[o++] = (unsigned char)best; out[o++] = from & 255; out[o++] = (unsigned char)(from >> 8); i += best; }
    else { out[o++] = 0; out[o++] = in[i++]; }
  }
  return o;
}
static size_t unpack(const unsigned char *in, size_t n, unsigned char *out) {
  size_t o = 0;
  for (size_t i = 0; i < n;) {
    if (in[i]) { size_t from = in[i + 2] | in[i + 3] << 8; for (int k = 0; k < in[i + 1]; k++, o++) out[o] = out[o - from]; i += 4; }
    else { out[o++] = in[i + 1]; i += 2; }
  }
  return o;
}
static int place(int n, int row, uint32_t a, uint32_t b, uint32_t c) {
  int found = 0;
  if (row == n) return 1;
  for (uint32_t free = ~(a | b | c) & ((1u << n) - 1); free; free &= free - 1) {
    uint32_t bit = free & (0u - free);
    found += place(n, row + 1, a | bit, (b | bit) << 1, (c | bit) >> 1);
  }
  return found;
}
struct record { char name[12]; uint16_t key; double weight; };
static int by_key(const void *a, const void *b) {
  const struct record *x = a, *y = b;
  return x->key != y->key ? (x->key < y->key ? -1 : 1) : strcmp(x->name, y->name);
}
static jmp_buf home;
static void dive(int depth) { if (depth == 0) longjmp(home, 42); dive(depth - 1); }

static void written(void) {
  static unsigned char text[60000], packed[120000], again[60000];
  for (size_t i = 0; i < sizeof text; i++) text[i] = i > 300 && draw(4) ? text[i - 1 - draw(200)] : (unsigned char)(97 + draw(26));
  size_t n = pack(text, sizeof text, packed), m = unpack(packed, n, again);
  printf("pack %u %08x %08x %s\\n", (unsigned)n, crc(text, sizeof text), crc(packed, n), m == sizeof text && !memcmp(text, again, m) ? "same" : "DIFFERENT");
  printf("queens %d\\n", place(8, 0, 0, 0, 0));
  static struct record all[600];
  for (int i = 0; i < 600; i++) { sprintf(all[i].name, "r%03x", draw(4096)); all[i].key = (uint16_t)draw(50); all[i].weight = draw(1000) / 7.0; }
  qsort(all, 600, sizeof all[0], by_key);
  double sum = 0;
  for (int i = 0; i < 600; i++) { sum = sum * 0.75 + all[i].weight / (i + 1); if (i % 97 == 0) printf("%s %u %.17g\\n", all[i].name, all[i].key, sum); }
  static double a[24][24], b[24][24], c[24][24];
  for (int i = 0; i < 24; i++) for (int j = 0; j < 24; j++) { a[i][j] = 1.0 / (i + j + 1); b[i][j] = (i * 7 + j * 3) % 11 - 5; }
  for (int i = 0; i < 24; i++) for (int j = 0; j < 24; j++) { double s = 0; for (int k = 0; k < 24; k++) { double p = a[i][k] * b[k][j]; s += p; } c[i][j] = s; }
  printf("matrix %.17g %.17g %a\\n", c[3][5], c[23][23], c[11][7]);
  float f = 1.0f; for (int i = 1; i < 50; i++) { f = f / 3.0f; f = f + (float)i; }
  printf("float %.9g, %lld %llu %d\\n", f, (long long)(f * 1e6f), (unsigned long long)(sum * 1e15), (int)(-3.9 - f));
  int jumped = setjmp(home);
  if (jumped == 0) dive(20);
  printf("jumped %d\\n", jumped);
  char line[64] = "the quick brown fox"; int words = 0;
  for (char *w = strtok(line, " "); w; w = strtok(NULL, " ")) words = words * 31 + (int)strlen(w);
  printf("words %d %ld %s\\n", words, strtol("-0x7fff", NULL, 16), strstr("needle in hay", "in"));
}
`;

function expression(random: SeededRandom, depth: number): string {
  const variable = (): string => `v[${random.below(VARIABLES)}]`;
  if (depth === 0) return random.below(3) === 0 ? `0x${random.u64().toString(16)}ull` : variable();
  const [a, b] = [expression(random, depth - 1), expression(random, random.below(depth))];
  return random.pick([
    `(${a} + ${b})`, `(${a} - ${b})`, `(${a} * ${b})`, `(${a} ^ ${b})`, `(${a} & ${b})`, `(${a} | ${b})`, `(~${a})`,
    `(${a} / (${b} | 1))`, `(${a} % (${b} | 1))`, `(${a} << (${b} & 63))`, `(${a} >> (${b} & 63))`,
    `(uint64_t)(uint32_t)${a}`, `(uint64_t)(int64_t)(int8_t)(${a} & 127)`, `(${a} < ${b} ? ${b} : ${variable()})`,
    `(uint64_t)((uint32_t)${a} * (uint32_t)${b})`, `(uint64_t)((double)(${a} >> 12) / 3.0)`, `(uint64_t)(${a} == ${b})`,
    `(uint64_t)((int64_t)(${a} >> 1) / ((int64_t)(${b} >> 34) - 5000000000))`,
  ]);
}

function randomFunction(random: SeededRandom, number: number): string {
  const statements = Array.from({ length: STATEMENTS }, (_, i) => {
    const target = `v[${random.below(VARIABLES)}]`;
    switch (random.below(5)) {
      case 0: return `for (int i${i} = 0; i${i} < ${1 + random.below(9)}; i${i}++) ${target} += ${expression(random, 2)} ^ (uint64_t)i${i};`;
      case 1: return `if (${expression(random, 1)} & ${1 << random.below(5)}) ${target} = ${expression(random, 2)}; else ${target} ^= ${expression(random, 1)};`;
      case 2: return `switch (${expression(random, 1)} % 5) { case 0: ${target}++; case 1: ${target} -= 3; break; case 3: ${target} = ~${target}; break; default: ${target} *= 5; }`;
      case 3: return number === 0 ? `${target} ^= ${expression(random, 3)};`
        : `if (depth < 3) ${target} += f${random.below(number)}(v, depth + 1);`;
      default: return `${target} = ${expression(random, 3)};`;
    }
  });
  return `static uint64_t f${number}(const uint64_t *given, int depth) {
  uint64_t v[${VARIABLES}]; memcpy(v, given, sizeof v);
  ${statements.join('\n  ')}
  return ${expression(random, 2)} + v[${random.below(VARIABLES)}];
}
`;
}

export function cProgram(random: SeededRandom): string {
  const functions = Array.from({ length: FUNCTIONS }, (_, number) => randomFunction(random, number));
  const calls = functions.map((_, number) => `  for (int i = 0; i < 20; i++) { v[i % ${VARIABLES}] += f${number}(v, 0); }
  printf("f${number} %016llx\\n", (unsigned long long)v[${number % VARIABLES}]);`);
  return `${WRITTEN}\n${functions.join('')}
int main(void) {
  uint64_t v[${VARIABLES}] = { 1, 0x123456789abcdefull, ~0ull, 77, 0x8000000000000000ull };
  written();
${calls.join('\n')}
  return 0;
}
`;
}

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeIo, runCli } from './test-io.ts';

test('bench passes names and statuses on', async () => {
  const { status, out, err } = await runCli(['bench', 'no-such-benchmark', '--json']);
  assert.deepEqual([status, out], [2, '']);
  assert.match(err, /^bench: no benchmark is called "no-such-benchmark"; there are: .*\bcheckpoint\b/);
});

test('bench ends the benchmarks when it is interrupted', async () => {
  const io = new FakeIo();
  const ended = runCli(['bench', 'interpreter'], {}, io);
  await io.stderr.hears('interpreter:');
  io.interrupt();
  const { status, out, err } = await ended;
  assert.deepEqual([status, out], [130, '']);
  assert.match(err, /ended by SIGINT/);
  assert.equal(io.pending, 0);
});

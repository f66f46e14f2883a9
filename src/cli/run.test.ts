import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ZazenError } from '../base/errors.ts';
import type { ExecSpec } from '../host/types.ts';
import { FakeIo, runCli } from './test-io.ts';
import type { FakeHostOptions } from './test-fake-host.ts';

const bytes = (io: FakeIo): Buffer => io.stdout.bytes;

/** Input that is at its end at once, as /dev/null. */
function noInput(): FakeIo {
  const io = new FakeIo();
  io.stdin.end();
  return io;
}

test('--exec: the output goes unaltered to stdout, nothing else does, and the status is the command\'s', async () => {
  const io = noInput();
  const output = Buffer.from(Array.from({ length: 512 }, (_, i) => i & 255));
  const result = await runCli(['run', '--exec', 'x'], { guest: (guest) => guest.command(output, 7) }, io);
  assert.equal(result.status, 7);
  assert.deepEqual(bytes(io), output);
  assert.equal(result.err, '');
  assert.equal(result.hosts.open, 0);
  assert.deepEqual(result.hosts.specs, [{ exec: { command: 'x', tty: 'pipe' }, cmdline: 'quiet', nics: [{ network: 'default' }] }]);
});

test('--verbose shows the boot messages on stderr', async () => {
  const options: FakeHostOptions = { guest: (guest) => guest.command('out', 0) };
  const { status, out, err } = await runCli(['run', '-v', '--', 'ls', 'a b'], options, noInput());
  assert.deepEqual([status, out], [0, 'out']);
  assert.match(err, /boot message/);
});

test('the options become the spec, and the words after -- the command', async () => {
  const words = ['run', '--kernel', 'K', '--initrd', 'I', '--cmdline', 'a=b', '--memory', '3GiB', '--vcpus', '2',
    '--name', 'web', '--', 'echo', "it's"];
  const { hosts } = await runCli(words, { guest: (guest) => guest.command('', 0) }, noInput());
  assert.deepEqual(hosts.specs, [{
    name: 'web', memory: '3GiB', kernel: 'K', initrd: 'I', cmdline: 'quiet a=b', vcpus: 2,
    exec: { command: String.raw`echo 'it'\''s'`, tty: 'pipe' }, nics: [{ network: 'default' }],
  }]);
  assert.equal(hosts.hostOptions[0]!.memory, 3.5 * 2 ** 30);
});

test('the host has room for the guest, and 64-bit addresses only where the guest needs them', async () => {
  for (const [memory, mebibytes] of [['400MiB', 2048], ['3GiB', 3584], ['3840MiB', 4096], ['3841MiB', 4353], ['15872MiB', 16_384]] as const) {
    const { hosts } = await runCli(['run', '-m', memory, '--', 'x'], { guest: (guest) => guest.command('', 0) }, noInput());
    assert.equal(hosts.hostOptions[0]!.memory, mebibytes * 2 ** 20, memory);
  }
});

test('network cards: forwards, another network, none, a capture; and what does not go together', async () => {
  const run = (...words: string[]) => runCli(['run', ...words, '--', 'x'], { guest: (guest) => guest.command('', 0) }, noInput());
  const { hosts } = await run('-p', '8080:80', '--publish', '53:53/udp', '--network', 'blue', '--pcap', '/tmp/x.pcap');
  assert.deepEqual(hosts.specs[0]!.nics, [{ network: 'blue', forwards: ['8080:80', '53:53/udp'] }]);
  assert.deepEqual(hosts.hostOptions[0]!.networks, { blue: { capturePath: '/tmp/x.pcap' } });
  assert.deepEqual((await run('--net', 'none')).hosts.specs[0]!.nics, []);
  for (const words of [['-p', '80'], ['--net', 'none', '-p', '1:1'], ['--net', 'a', '--network', 'b'], ['--net', 'none', '--pcap', 'x']]) {
    const { status, hosts: none } = await run(...words);
    assert.deepEqual([status, none.specs.length], [2, 0], words.join(' '));
  }
});

test('standard input is the command\'s, and ends where it ends', async () => {
  const io = new FakeIo();
  io.stdin.end('one\ntwo');
  const { out } = await runCli(['run', '--exec', 'cat'], {
    guest: async (guest) => {
      guest.begin();
      guest.say(await guest.typed('\x04\x04'));
      guest.end(0);
    },
  }, io);
  assert.equal(out.replaceAll('\x04', ''), 'one\ntwo');
});

test('without a terminal and a command, standard input is a script for sh', async () => {
  const io = new FakeIo();
  io.stdin.end('exit 3\n');
  const { status, hosts } = await runCli(['run'], { guest: (guest) => guest.command('', 3) }, io);
  assert.equal(status, 3);
  assert.equal((hosts.specs[0]!.exec as ExecSpec).command, 'cat | sh');
});

test('without a terminal, a guest with another initramfs gets the console', async () => {
  const io = new FakeIo();
  io.stdin.end('typed\n');
  const { status, out, hosts } = await runCli(['run', '--initrd', 'mine'], {
    guest: async (guest) => {
      guest.say(`got ${await guest.typed('\n')}`);
      guest.shutdown('poweroff');
    },
  }, io);
  assert.deepEqual([status, out, hosts.specs[0]!.exec], [0, 'got typed\n', undefined]);
});

test('--json prints one document with the output, the status, timings and statistics', async () => {
  const options = (output: string | Uint8Array): FakeHostOptions => ({ guest: (guest) => guest.command(output, 5) });
  const text = await runCli(['run', '--json', '--exec', 'x'], options('höhe\n'), noInput());
  const report = JSON.parse(Buffer.from(text.out, 'latin1').toString());
  assert.equal(text.status, 5);
  assert.equal(report.status, 5);
  assert.equal(report.outcome, 'exit');
  assert.equal(report.output, 'höhe\n');
  assert.equal(report.stats.instructionsRetired, 800e6);
  const names = ['hostMillis', 'createMillis', 'initMillis', 'commandStartMillis', 'commandMillis', 'totalMillis'];
  for (const name of names) {
    assert.ok(report.timings[name] >= 0, name);
  }
  const binary = await runCli(['run', '--json', '--exec', 'x'], options(Buffer.of(0xff, 0)), noInput());
  assert.equal(JSON.parse(binary.out).outputBase64, '/wA=');
});

test('an error of the host is one line and exit status 1, also as JSON', async () => {
  const create = async (): Promise<void> => {
    throw new ZazenError('ZAZEN_KERNEL_TRUNCATED', 'k: the kernel\nis truncated', { hint: 'give another' });
  };
  const plain = await runCli(['run', '--exec', 'x'], { create }, noInput());
  assert.deepEqual([plain.status, plain.out, plain.err], [1, '', 'zazen: k: the kernel?is truncated; give another\n']);
  assert.equal(plain.hosts.open, 0);
  const json = await runCli(['run', '--exec', 'x', '--json'], { create }, noInput());
  assert.equal(JSON.parse(json.out).error.code, 'ZAZEN_KERNEL_TRUNCATED');
});

test('our own bug is not dressed up as an error of the operator', async () => {
  const create = async (): Promise<void> => { throw new TypeError('bug'); };
  await assert.rejects(runCli(['run', '--exec', 'x'], { create }, noInput()), TypeError);
});

test('a guest that crashes before its command is told with its last words', async () => {
  const { status, err, hosts } = await runCli(['run', '--exec', 'x'], {
    guest: (guest) => {
      guest.say('Kernel panic - not syncing: no working init\r\n');
      guest.shutdown('crash');
    },
  }, noInput());
  assert.equal(status, 1);
  assert.match(err, /^zazen: the guest stopped before the command began.*Kernel panic - not syncing.*\n$/);
  assert.equal(hosts.open, 0);
});

test('--timeout ends a guest that hangs with 124', async () => {
  const { status, err, hosts } = await runCli(['run', '--timeout', '0.05', '--exec', 'x'], {}, noInput());
  assert.deepEqual([status, err, hosts.open], [124, 'zazen: the guest took longer than 0.05 s\n', 0]);
});

test('a guest that cannot go on ends the run', async () => {
  const guest: FakeHostOptions['guest'] = (it) => it.stall('no frame is left for the guest');
  const { status, err } = await runCli(['run', '--exec', 'x'], { guest }, noInput());
  assert.deepEqual([status, err], [1, 'zazen: no frame is left for the guest\n']);
});

// ---- a person at a terminal

test('in a terminal the guest gets every key, and the terminal its mode back', async () => {
  const io = new FakeIo().terminal();
  io.stdin.write('ls\r\x03');
  const { status, out, hosts } = await runCli(['run'], {
    guest: async (guest) => {
      guest.say(`typed ${JSON.stringify(await guest.typed('\x03'))}`);
      guest.shutdown('poweroff');
    },
  }, io);
  assert.deepEqual([status, out], [0, String.raw`typed "ls\r\u0003"`]);
  assert.deepEqual(io.stdin.rawModes, [true, false]);
  assert.equal(io.pending, 0);
  assert.deepEqual(hosts.specs[0]!.terminal, { rows: 24, columns: 80, type: 'vt100' });
  assert.equal(hosts.specs[0]!.exec, undefined);
});

test('Ctrl-] leaves, whatever the guest does', async () => {
  const io = new FakeIo().terminal();
  const running = runCli(['run'], { guest: (guest) => guest.say('login: ') }, io);
  await io.stdout.hears('login: ');
  io.stdin.write('abc\x1ddef');
  const { status, err, hosts } = await running;
  assert.deepEqual([status, hosts.open, io.pending], [0, 0, 0]);
  assert.match(err, /left the guest; it is destroyed/);
  assert.deepEqual(io.stdin.rawModes, [true, false]);
});

test('a command in a terminal has the guest\'s terminal from its start on; leaving it is no success', async () => {
  const io = new FakeIo().terminal();
  const running = runCli(['run', '--exec', 'top'], { guest: (guest) => { guest.begin(); guest.say('top -'); } }, io);
  await io.stdout.hears('top -');
  while (io.stdin.rawModes.length === 0) await new Promise((resolve) => { setImmediate(resolve); });
  io.stdin.write('\x1d');
  const { status, hosts } = await running;
  assert.equal(status, 130);
  assert.equal((hosts.specs[0]!.exec as ExecSpec).tty, 'cooked');
  assert.deepEqual(io.stdin.rawModes, [true, false]);
});

test('a guest that reboots is started again', async () => {
  const io = new FakeIo().terminal();
  let boots = 0;
  const { status, hosts } = await runCli(['run'], {
    guest: (guest) => {
      boots++;
      guest.say(`boot ${boots}\n`);
      guest.shutdown(boots < 3 ? 'reboot' : 'poweroff');
    },
  }, io);
  assert.deepEqual([status, boots, hosts.specs.length, hosts.open], [0, 3, 3, 0]);
  assert.equal(io.stdout.text, 'boot 1\nboot 2\nboot 3\n');
});

test('without a terminal a guest that reboots is not started again', async () => {
  const io = noInput();
  const guest: FakeHostOptions['guest'] = (it) => it.shutdown('reboot');
  const { status, err, hosts } = await runCli(['run', '--initrd', 'mine'], { guest }, io);
  assert.deepEqual([status, hosts.specs.length], [1, 1]);
  assert.match(err, /wants to reboot/);
});

test('a guest that crashes at the console is an error', async () => {
  const guest: FakeHostOptions['guest'] = (it) => it.shutdown('crash');
  const { status, err } = await runCli(['run'], { guest }, new FakeIo().terminal());
  assert.equal(status, 1);
  assert.match(err, /the guest crashed/);
});

test('--json at a terminal is refused', async () => {
  const { status, hosts } = await runCli(['run', '--json'], {}, new FakeIo().terminal());
  assert.deepEqual([status, hosts.hostOptions.length], [2, 0]);
});

// ---- interrupted at any time

const moments: Record<string, (interrupt: () => void) => FakeHostOptions> = {
  'while the host starts': (interrupt) => ({ startHost: async () => interrupt() }),
  'while the guest is created': (interrupt) => ({
    create: (_spec, { signal }) => new Promise((_resolve, reject) => {
      signal!.addEventListener('abort', () => reject(signal!.reason));
      interrupt();
    }),
  }),
  'while the guest is created by a host that does not listen': (interrupt) => ({
    create: () => new Promise(() => interrupt()),
  }),
  'while the guest boots': (interrupt) => ({ guest: () => { setImmediate(interrupt); } }),
  'while the command runs': (interrupt) => ({
    guest: (guest) => {
      guest.begin();
      guest.say('some output');
      setImmediate(interrupt);
    },
  }),
};

for (const [moment, optionsOf] of Object.entries(moments)) {
  for (const person of [false, true]) {
    test(`interrupted ${moment}, ${person ? 'in a terminal' : 'without one'}: cleaned up, 130`, async () => {
      const io = person ? new FakeIo().terminal() : new FakeIo();
      const { status, err, hosts } = await runCli(['run', '--exec', 'x'], optionsOf(() => io.interrupt()), io);
      assert.equal(status, 130);
      assert.match(err, /zazen: ended by SIGINT\n$/);
      assert.deepEqual([hosts.open, io.pending], [0, 0]);
      assert.equal(io.stdin.rawModes.at(-1) ?? false, false);
    });
  }
}

test('interrupted before anything: no host is started', async () => {
  const io = new FakeIo();
  io.interrupt();
  const { status, hosts } = await runCli(['run', '--exec', 'x'], {}, io);
  assert.deepEqual([status, hosts.hostOptions.length], [130, 0]);
});

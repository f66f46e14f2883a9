import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import test from 'node:test';
import { i32 } from '../wasm/scalar.ts';
import { ModuleBuilder } from '../wasm/module.ts';
import { DEFAULT_TIERING_BUDGET } from './region-module.ts';

/** A module with a function that counts its argument down, after so many instructions that tell it from others. */
function countingModule(marks: number): { bytes: Uint8Array<ArrayBuffer>; bodyBytes: number } {
  const module = new ModuleBuilder({ params: [], results: [] }, { addressType: 'i32', minPages: 1, maxPages: 1 });
  const f = module.function({ params: ['i32'], results: [] });
  module.export('count', f);
  for (let i = 0; i < marks; i++) f.drop(i32.const(0));
  const left = f.param(0, 'i32');
  f.loop(again => {
    f.set(left, i32.sub(left, i32.const(1)));
    f.if(left, () => f.br(again));
  });
  return { bytes: module.encode(), bodyBytes: f.body().bytes.length };
}

/** Functions of which V8 says that it has optimised them, by the length of their bodies. With it waiting for that, at once. */
function optimised(script: string): number[] {
  const output = execFileSync(process.execPath, ['--wasm-sync-tier-up', '--trace-wasm-compilation-times', '--input-type=module', '-e', script],
    { encoding: 'utf8', env: { ...process.env, REGION_MODULE: new URL('region-module.ts', import.meta.url).href } });
  assert.match(output, /^done$/m);
  return [...output.matchAll(/#0 using TurboFan.*bodysize (\d+)/g)].map(match => Number(match[1]));
}

test('regions are optimised early, but not those that are made while a guest boots, and nothing else is', () => {
  const [region, other, booting] = [countingModule(1000), countingModule(2000), countingModule(3000)];
  const count = (module: string): string =>
    `new WebAssembly.Instance(${module}, { env: { memory: new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true }) } }).exports.count(100_000);`;
  const bytesOf = ({ bytes }: typeof region): string => `Buffer.from('${Buffer.from(bytes).toString('base64')}', 'base64')`;
  const found = optimised(`import assert from 'node:assert';
    const { makeRegionModule } = await import(process.env.REGION_MODULE);
    ${count(`makeRegionModule(${bytesOf(booting)}, true)`)}
    ${count(`makeRegionModule(${bytesOf(region)}, false)`)}
    assert.throws(() => makeRegionModule(new Uint8Array(8), false), WebAssembly.CompileError);
    ${count(`new WebAssembly.Module(${bytesOf(other)})`)}
    console.log('done');`);
  assert.ok(found.includes(region.bodyBytes), 'the region is');
  assert.ok(!found.includes(booting.bodyBytes), 'one of a boot is not');
  assert.ok(!found.includes(other.bodyBytes), 'one that is made after it is not, nor after one that could not be made');
});

test('what is set again behind a module is what V8 has by itself', () => {
  const options = execFileSync(process.execPath, ['--v8-options'], { encoding: 'utf8' });
  assert.equal(/default: --wasm-tiering-budget=(\d+)/.exec(options)?.[1], String(DEFAULT_TIERING_BUDGET));
});

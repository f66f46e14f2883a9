// The interpreter, generated from the instruction table: a module of one handler per specialised row and a few shared
// functions. It is compiled once and instantiated by every worker; all handlers lie in the imported table under their
// numbers.

import { HANDLER_DECODE, HANDLER_END_OF_PAGE, HANDLER_UNDEFINED } from '../abi/decode-cache.ts';
import { scratchOffset, tlbEntry, vcpuRecord } from '../abi/vcpu.ts';
import type { Fields, Row } from '../a64/row.ts';
import { fieldsOf, operandsOf } from '../a64/row.ts';
import { numbering, rows, staticsOf } from '../a64/table.ts';
import { computeNames, trapNames } from '../a64/slow.ts';
import { RECORD_BYTES } from '../a64/operand.ts';
import { SeededRandom } from '../base/random.ts';
import { i32, i64 } from '../wasm/scalar.ts';
import type { Callable, FunctionBuilder } from '../wasm/function.ts';
import { ModuleBuilder } from '../wasm/module.ts';
import type { MemoryImport } from '../wasm/module.ts';
import type { Address, I32 } from '../wasm/types.ts';
import { ACCESS_ALIGNED, computeSignature, emittedCalls, trapSignature } from './emitted-calls.ts';
import { emitTraps } from './emitted-traps.ts';
import type { EmittedTraps } from './emitted-traps.ts';
import { FAULT_ANSWERS, emitWalk } from './emitted-walk.ts';
import { dispatch, goThroughTlb, handlerBehind, loads, orderedLoads, orderedStores, stores } from './engine-machine.ts';
import { TABLE_SIZE, handlerSignature, sharedFunctions } from './handlers.ts';
import type { InterpreterLayout } from './handlers.ts';
import { emitStoreFlags } from './jit/lazy-flags.ts';
import { InterpreterMachine } from './interpreter-machine.ts';
import type { InterpreterContext } from './interpreter-machine.ts';

const at = vcpuRecord.at;
export function buildInterpreter(memory: MemoryImport, layout: InterpreterLayout): Uint8Array<ArrayBuffer> {
  const module = new ModuleBuilder(handlerSignature, memory);
  const imports = Object.fromEntries(Object.entries(emittedCalls)
    .map(([name, signature]) => [name, module.importFunction(name, signature)])) as Record<keyof typeof emittedCalls, Callable>;
  const trapsInTypeScript = Object.fromEntries(trapNames
    .map(name => [name, module.importFunction(`trap_${name}`, trapSignature)])) as InterpreterContext['traps'];
  const compute = Object.fromEntries(computeNames
    .map(name => [name, module.importFunction(`compute_${name}`, computeSignature)])) as InterpreterContext['compute'];

  const leave = emitLeave(module);
  const resume = emitResume(module);
  const { fillData, fillExec, maintain } = emitWalk(module, layout);
  const { traps, dataAbort, instructionAbort } = emitTraps(module, trapsInTypeScript, fillExec);
  const slowLoad = emitSlowAccess(module, imports.slowLoad, fillData, dataAbort, 'load');
  const slowStore = emitSlowAccess(module, imports.slowStore, fillData, dataAbort, 'store');
  const fillTlb = emitSlowAccess(module, imports.fillTlb, fillData, dataAbort, 'fill');
  const jump = emitJump(module, imports.fetch, fillExec, instructionAbort, resume, leave);
  const storeFlags = emitStoreFlags(module);
  const handOver = emitHandOver(module, storeFlags);
  const shared: Record<keyof typeof sharedFunctions, Callable> = {
    resume, jump, leave, slowLoad, slowStore, fillTlb, storeFlags, handOver,
  };
  for (const name in shared) module.export(name, shared[name as keyof typeof shared]);
  const unknownRegion = emitUnknownRegion(module, imports.takeInRegions, resume);
  module.export('unknownRegion', unknownRegion);
  module.defineTable(TABLE_SIZE, unknownRegion);
  module.place(HANDLER_DECODE, emitDecode(module, imports.decode));
  module.place(HANDLER_END_OF_PAGE, emitEndOfPage(module, jump));

  const context: InterpreterContext = {
    addressType: memory.addressType, resume, jump, leave, slowLoad, slowStore, fillTlb, traps, maintain, compute, pairLockAddress: layout.pairLock,
  };
  const undefinedHandler = module.function(handlerSignature);
  new InterpreterMachine(undefinedHandler, context, false).undefined();
  module.place(HANDLER_UNDEFINED, undefinedHandler);
  for (const row of rows) emitRow(module, context, row);
  return module.encode();
}

function emitRow(module: ModuleBuilder, context: InterpreterContext, row: Row): void {
  const { first, count } = numbering(row);
  for (let handler = first; handler < first + count; handler++) {
    const { statics, special } = staticsOf(row, handler);
    const sample = sampleFields(row, statics);
    if (!sample) continue;
    const f = module.function(handlerSignature);
    const machine = new InterpreterMachine(f, context, special && row.branch !== undefined);
    if (row.fp) machine.requireFp();
    if (special && row.spBase) machine.requireAlignedSp();
    row.meaning(machine, operandsOf(row, sample), statics);
    machine.finish();
    module.place(handler, f);
  }
}

/** Zero first, because nearly every row is allocated with all other fields zero; the rest are as good as any. */
const sampleWords = (() => {
  const random = new SeededRandom(1);
  return [0, ...Array.from({ length: 127 }, () => random.u32())];
})();

/** Fields with which the row is allocated for these statics, or undefined if there are none. */
function sampleFields(row: Row, statics: Fields): Fields | undefined {
  for (const word of sampleWords) {
    const fields = { ...fieldsOf(row, word), ...statics };
    if (row.when(fields)) return fields;
    if (word === 0 && !looksBeyond(row, fields, statics)) return undefined;
  }
  return undefined;
}

/** Whether it takes more than the statics to tell if the row is allocated: a tenth of all combinations are none, whatever else. */
function looksBeyond(row: Row, fields: Fields, statics: Fields): boolean {
  let isBeyond = false;
  row.when(new Proxy(fields, {
    get: (target, name: string) => {
      isBeyond ||= !(name in statics);
      return target[name];
    },
  }));
  return isBeyond;
}

function save(f: FunctionBuilder, record: ReturnType<typeof i32.const>, vcpu: ReturnType<typeof i32.const>,
  fuel: ReturnType<typeof i32.const>): void {
  f.do(i32.store(vcpu, record, at.record));
  f.do(i32.store(vcpu, fuel, at.fuel));
}

function handlerParams(f: FunctionBuilder) {
  return { record: f.param(0, 'i32'), vcpu: f.param(1, 'i32'), fuel: f.param(2, 'i32') };
}

function emitLeave(module: ModuleBuilder): Callable {
  const f = module.function(sharedFunctions.leave);
  const { record, vcpu, fuel } = handlerParams(f);
  save(f, record, vcpu, fuel);
  return f;
}

function emitResume(module: ModuleBuilder): Callable {
  const f = module.function({ params: ['i32'], results: [] });
  const vcpu = f.param(0, 'i32');
  const record = f.let(i32.load(vcpu, at.record));
  f.if(i32.eqz(record), () => f.return());
  const fuel = f.let(i32.load(vcpu, at.fuel));
  // What comes after a trap may be reached in no other way, and would never be found hot if no vCPU stopped there.
  f.if(i32.leS(i32.sub(fuel, record), i32.const(0)), () => f.return(), undefined, 'unlikely');
  dispatch(f, record, vcpu, fuel);
  return f;
}

function emitDecode(module: ModuleBuilder, decode: Callable): Callable {
  const f = module.function(handlerSignature);
  const { record, vcpu, fuel } = handlerParams(f);
  save(f, record, vcpu, fuel);
  f.call(decode, vcpu);
  dispatch(f, record, vcpu, fuel);
  return f;
}

/** (record, vcpu, fuel, its handler, and of the flags kind, a, b): out of a region, to the handler of an instruction. */
function emitHandOver(module: ModuleBuilder, storeFlags: Callable): Callable {
  const f = module.function(sharedFunctions.handOver);
  const { record, vcpu, fuel } = handlerParams(f);
  f.call(storeFlags, vcpu, f.param(4, 'i32'), f.param(5, 'i64'), f.param(6, 'i64'));
  f.returnCallIndirect(f.param(3, 'i32'), record, vcpu, fuel, handlerBehind(record));
  return f;
}

/** Another thread has put a region's number into the record: after this one has the region, the record runs again. */
function emitUnknownRegion(module: ModuleBuilder, takeInRegions: Callable, resume: Callable): Callable {
  const f = module.function(handlerSignature);
  const { record, vcpu, fuel } = handlerParams(f);
  save(f, record, vcpu, fuel);
  f.call(takeInRegions, vcpu);
  f.returnCall(resume, vcpu);
  return f;
}

/** The pseudo-record after a page's last instruction: goes to the next page and counts as nothing. */
function emitEndOfPage(module: ModuleBuilder, jump: Callable): Callable {
  const f = module.function(handlerSignature);
  const { record, vcpu, fuel } = handlerParams(f);
  const pc = i64.add(i64.load(vcpu, at.pcBase), i64.extendI32U(i32.shrU(record, i32.const(2))));
  f.returnCall(jump, i32.sub(record, i32.const(RECORD_BYTES)), vcpu, fuel, pc);
  return f;
}

/** (record, vcpu, fuel, va): through the exec TLB. A misaligned address misses, and `fetch` takes the exception. */
function emitJump(
  module: ModuleBuilder, fetch: Callable, fillExec: Callable, instructionAbort: EmittedTraps['instructionAbort'], resume: Callable, leave: Callable,
): Callable {
  const f = module.function({ params: ['i32', 'i32', 'i32', 'i64'], results: [] });
  const { record, vcpu, fuel } = handlerParams(f);
  const va = f.param(3, 'i64');
  goThroughTlb(f, leave, record, vcpu, fuel, va, low => {
    const found = f.let(f.callExpr('i32', fillExec, vcpu, va));
    f.if(i32.leU(found, i32.const(FAULT_ANSWERS)), () => {
      save(f, record, vcpu, fuel);
      const status = i32.sub(found, i32.const(1));
      f.if(found, () => f.if(f.callExpr('i32', instructionAbort, vcpu, va, status), () => f.returnCall(resume, vcpu)));
      f.call(fetch, vcpu, low, i32.wrapI64(i64.shrU(va, i64.const(32))));
      f.returnCall(resume, vcpu);
    }, undefined, 'unlikely');
  });
  return f;
}

/** (record, vcpu, fuel, va, size and flags[, is write]) → for a load, the low 64 bits. */
function emitSlowAccess(
  module: ModuleBuilder, target: Callable, fillData: Callable, dataAbort: EmittedTraps['dataAbort'], kind: 'load' | 'store' | 'fill',
): Callable {
  const params = ['i32', 'i32', 'i32', 'i64', 'i32', ...(kind === 'fill' ? ['i32' as const] : [])] as const;
  const f = module.function({ params: [...params], results: kind === 'load' ? ['i64'] : [] });
  const { record, vcpu, fuel } = handlerParams(f);
  const va = f.param(3, 'i64');
  const sizeAndFlags = f.param(4, 'i32');
  const isWrite = kind === 'fill' ? f.param(5, 'i32') : i32.const(kind === 'store' ? 1 : 0);
  const entry = f.let(f.callExpr('i32', fillData, vcpu, va, sizeAndFlags, isWrite));
  f.if(i32.gtU(entry, i32.const(FAULT_ANSWERS)), () => {
    f.do(i32.store(vcpu, i32.const(0), at.abort));
    if (kind === 'fill') return f.return();
    const host = f.let(module.addressType === 'i64'
      ? i64.add(va, i64.load(entry, tlbEntry.at.target)) : i32.add(i32.wrapI64(va), i32.load(entry, tlbEntry.at.target)));
    const size = f.let(i32.and(sizeAndFlags, i32.const(0xff)));
    const each = kind === 'load' ? emitLoads : emitStores;
    f.if(i32.and(sizeAndFlags, i32.const(ACCESS_ALIGNED)), () => each(f, vcpu, host, size, true));
    each(f, vcpu, host, size, false);
  });
  save(f, record, vcpu, fuel);
  f.if(entry, () => {
    const aborts = f.callExpr('i32', dataAbort, vcpu, va, i32.sub(entry, i32.const(1)), isWrite);
    f.if(aborts, () => f.return(...(kind === 'load' ? [i64.const(0)] : [])));
  });
  f.call(target, vcpu, i32.wrapI64(va), i32.wrapI64(i64.shrU(va, i64.const(32))), sizeAndFlags,
    ...(kind === 'fill' ? [isWrite] : []));
  if (kind === 'load') f.push(i64.load(vcpu, scratchOffset(0)));
  return f;
}

const accessSizes = [8, 4, 1, 2] as const;

/** Returns what a load of the slow path gives: the low 64 bits, and of a pair or vector the rest in scratch word 1. */
function emitLoads(f: FunctionBuilder, vcpu: I32, host: Address, size: I32, ordered: boolean): void {
  for (const bytes of accessSizes) {
    f.if(i32.eq(size, i32.const(bytes)), () => f.return((ordered ? orderedLoads : loads)[bytes](host)));
  }
  const low = f.let(i64.load(host));
  f.do(i64.store(vcpu, low, scratchOffset(0)));
  f.do(i64.store(vcpu, i64.load(host, 8), scratchOffset(1)));
  f.return(low);
}

/** Stores scratch words, and returns. */
function emitStores(f: FunctionBuilder, vcpu: I32, host: Address, size: I32, ordered: boolean): void {
  const value = i64.load(vcpu, scratchOffset(0));
  for (const bytes of accessSizes) {
    f.if(i32.eq(size, i32.const(bytes)), () => {
      f.do((ordered ? orderedStores : stores)[bytes](host, value));
      f.return();
    });
  }
  f.do(i64.store(host, value));
  f.do(i64.store(host, i64.load(vcpu, scratchOffset(1)), 8));
  f.return();
}

// How the records of a domain's state were laid out when images did not say so themselves (state version 1). It is history
// and never changes: each field by its name, offset and size, or the record or the number of things that it consists of.

import type { FieldLayout, RecordLayout, RecordName, StateLayout } from './state-layout.ts';

type Description = readonly [bytes: number, fields: string];

const version1 = {
  heldFrame: [8, `
    mfn@0:4 gfn@4:4`],
  pl011: [64, `
    lock@0:4 imsc@4:4 ris@8:4 cr@12:4 lcrH@16:4 ibrd@20:4 fbrd@24:4 ifls@28:4 ilpr@32:4 dmacr@36:4 txShort@40:4`],
  pl031: [64, `
    lock@0:4 offset@4:4 load@8:4 match@12:4 imsc@16:4 ris@20:4 armed@24:4`],
  virtioSlot: [256, `
    lock@0:4 deviceId@4:4 queueCount@8:4 featuresLow@12:4 featuresHigh@16:4 driverFeaturesLow@20:4
    driverFeaturesHigh@24:4 deviceFeaturesSel@28:4 driverFeaturesSel@32:4 queueSel@36:4 status@40:4
    interruptStatus@44:4 configGeneration@48:4 resets@52:4 kicks@56:4 queues@64:virtioQueue*2 config@144:1*64`],
  virtioQueue: [40, `
    num@0:4 ready@4:4 desc@8:8 driver@16:8 device@24:8 lastAvail@32:4 usedIndex@36:4`],
  domain: [1672, `
    lock@0:4 state@4:4 incarnation@8:4 pauseCount@12:4 stalled@16:4 shutdown@20:4 shutdownCode@24:4 p2mRoot@28:4
    maxPages@32:4 pages@36:4 maxGfn@40:4 handle@44:1*16 vcpuCount@60:4 vmAssist@64:4 vcpuFrames@68:4*16
    sharedInfo@132:heldFrame console@140:heldFrame xenstore@148:heldFrame consoleLog@156:4 emulated@160:4
    hostEvents@164:4 eventMode@168:4 pollers@172:4 portHint@176:4 fifoPages@180:4 portFrames@184:4*64
    fifoArray@440:heldFrame*16 grantFrames@568:4 grants@572:heldFrame*64 activeFrames@1084:4*64
    hvmParams@1344:8*39 watchdogNanos@1656:8*2`],
  port: [16, `
    state@0:1 priority@1:1 deferred@2:1 linkedPriority@3:1 vcpu@4:2 linkedVcpu@6:2 remote@8:4 remotePort@12:4`],
  consoleLog: [2052, `
    written@0:4 data@4:1*2048`],
  emulated: [4096, `
    accesses@0:4 hostCalls@4:4 counts@8:4*14 pl011@64:pl011 pl031@128:pl031 virtio@192:virtioSlot*11`],
  vcpu: [4096, `
    x@0:8*34 scratch@272:8*8 v@336:16*32 flagN@848:8 flagZ@856:8 flagC@864:4 flagV@868:4 fpcr@872:4 fpsr@876:4
    pcBase@880:8 record@888:4 fuel@892:4 pending@896:4 abort@900:4 tlbRead@904:4 tlbWrite@908:4 tlbExec@912:4
    fpTrap@916:4 spAlignmentMask@920:4 el@924:4 spSel@928:4 daif@932:4 pan@936:4 pstateRest@940:4 irqLine@944:4
    lastPcpu@948:4 tlbFlushRequest@952:4 tlbFlushDone@956:4 running@960:4 spEl0@968:8 spEl1@976:8 elrEl1@984:8
    spsrEl1@992:8 esrEl1@1000:8 farEl1@1008:8 vbarEl1@1016:8 exclusiveAddress@1024:8 exclusiveValueLow@1032:8
    exclusiveValueHigh@1040:8 sctlrEl1@1048:8 actlrEl1@1056:8 cpacrEl1@1064:8 ttbr0El1@1072:8 ttbr1El1@1080:8
    tcrEl1@1088:8 mairEl1@1096:8 amairEl1@1104:8 contextidrEl1@1112:8 afsr0El1@1120:8 afsr1El1@1128:8
    parEl1@1136:8 tpidrEl0@1144:8 tpidrroEl0@1152:8 tpidrEl1@1160:8 csselrEl1@1168:8 cntkctlEl1@1176:8
    mdscrEl1@1184:8 mdccintEl1@1192:8 oslarEl1@1200:8 osdlrEl1@1208:8 dbgbvr@1216:8*16 dbgbcr@1344:8*16
    dbgwvr@1472:8*16 dbgwcr@1600:8*16 pmcrEl0@1728:8 pmuserenrEl0@1736:8 mpidrEl1@1744:8 cntvCtl@1752:8
    cntvCval@1760:8 cntpCtl@1768:8 cntpCval@1776:8 instructionsRetired@1784:8 unknownSystemRegisters@1792:8
    hypercalls@1800:4`],
  vcpuEntry: [512, `
    address@0:4 infoOffset@4:4 info@8:heldFrame control@16:heldFrame controlOffset@24:4 polling@28:4
    tails@32:4*16 virqPorts@96:4*24 runstate@192:4 runstateEntryNanos@200:8 runstateNanos@208:8*4
    runstateArea@240:8 awaitsResume@248:4`],
  gicDomain: [2240, `
    lock@0:4 ctlr@4:4 vcpuCount@8:4 enabled@12:4*8 pending@44:4*8 active@76:4*8 level@108:4*8 edge@140:4*8
    priority@172:1*256 router@428:4*256 target@1452:1*256 vcpus@1708:4*128 timeOffset@2224:8 timeStopped@2232:8`],
  gicVcpu: [128, `
    domid@0:4 index@4:4 waker@8:4 enabled@12:4 pending@16:4 active@20:4 level@24:4 edge@28:4 priority@32:1*32
    pmr@64:4 bpr0@68:4 bpr1@72:4 ctlr@76:4 igrpen0@80:4 igrpen1@84:4 ap0r0@88:4 ap1r0@92:4`],
} as const satisfies Record<RecordName | 'heldFrame' | 'pl011' | 'pl031' | 'virtioQueue' | 'virtioSlot', Description>;

/** Before there were emulated devices, and before SCHEDOP_shutdown answered a guest that goes on. */
const first = {
  ...version1,
  domain: [1664, `
    lock@0:4 state@4:4 incarnation@8:4 pauseCount@12:4 stalled@16:4 shutdown@20:4 shutdownCode@24:4 p2mRoot@28:4
    maxPages@32:4 pages@36:4 maxGfn@40:4 handle@44:1*16 vcpuCount@60:4 vmAssist@64:4 vcpuFrames@68:4*16
    sharedInfo@132:heldFrame console@140:heldFrame xenstore@148:heldFrame consoleLog@156:4 hostEvents@160:4
    eventMode@164:4 pollers@168:4 portHint@172:4 fifoPages@176:4 portFrames@180:4*64 fifoArray@436:heldFrame*16
    grantFrames@564:4 grants@568:heldFrame*64 activeFrames@1080:4*64 hvmParams@1336:8*39 watchdogNanos@1648:8*2`],
} as const;

function layoutOf(descriptions: typeof version1 | typeof first, name: keyof typeof version1): RecordLayout {
  const [bytes, text] = descriptions[name];
  const fields = text.trim().split(/\s+/).map((field): [string, FieldLayout] => {
    const [, id, at, what, count] = /^(\w+)@(\d+):(\w+)(?:\*(\d+))?$/.exec(field)!;
    const record = /^\d+$/.test(what!) ? undefined : layoutOf(descriptions, what as keyof typeof version1);
    const place = [Number(at), record?.bytes ?? Number(what), Number(count ?? 1)] as const;
    return [id!, record === undefined ? place : [...place, record]];
  });
  return { bytes, fields: Object.fromEntries(fields) };
}

/** @param domainBytes length of the section "domain/record", which tells them apart */
export function layoutOfVersion1(domainBytes: number): StateLayout {
  const descriptions = domainBytes === first.domain[0] ? first : version1;
  const names: readonly RecordName[] = [
    'domain', 'port', 'consoleLog', 'emulated', 'vcpu', 'vcpuEntry', 'gicDomain', 'gicVcpu',
  ];
  return Object.fromEntries(names.map((name) => [name, layoutOf(descriptions, name)])) as StateLayout;
}

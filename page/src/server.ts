// what the server can be asked, and what it answers
import type { Runs } from './drawing'

export interface Option { name: string; type: 'str' | 'int' | 'float'; help: string; repeated: boolean; choices: { value: string; name: string }[] }
export interface Point { name: string; position: number[] | null; radius: number | null }
export interface Instance { id: number; score: number; class: number; size: number; position: number[]; hidden: boolean; seen: boolean }
export interface Instances { rows: Instance[]; least: number; steps: number; left: number }
export interface Entry { name: string; kind: 'mesh' | 'points' | 'labels' | 'image' | 'file' }
export interface Answer {
  model: string
  adapter: string | null
  files: Entry[]
  points: Point[]
  instances: Instances | null
  summary: Record<string, string | number>
  uncertainty: number | null
  hypotheses: number[]
}
export interface Learned { metric: string; before: number | null; after: number | null; cases: number; better: boolean; bundle: string }
export type Work<T> = { state: 'waiting' | 'running' | 'done' | 'failed' | 'cancelled'; done: number; total: number; doing: string; message: string; answer: T | null }
export type Job = Work<Answer>
export type Training = Work<Learned>
export interface Answering { model: string; task: string | null; needed: string | null; options: Option[]; learns: boolean; adapters: { name: string; folder: string }[]; adapter: string | null }
export interface State extends Answering {
  loading: boolean
  cases: { id: number; name: string }[]
  answers: Record<string, Answer>
  out: string
  kept: number[]
  training: ({ job: number } & Training) | null
}
export interface Header { name: string; format: string; shape: number[]; spacing: number[]; affine: number[][]; oriented: boolean; shown: number[]; every: number[]; finer: boolean; modality: string; windows: { name: string; low: number; high: number }[] }

async function asked<T>(path: string, method = 'GET', body?: unknown): Promise<T> {
  let answer: Response
  try {
    answer = await fetch(path, { method, body: body === undefined || body instanceof Blob ? body : JSON.stringify(body) })
  } catch {
    throw new Error('voxelry view has ended; start it again in its terminal')
  }
  if (!answer.ok) throw new Error(await answer.text())
  return answer.json()
}

const WAIT = 300 // ms between looks at a job where there is no web socket

const over = (job: Work<unknown> | null) => job !== null && job.state !== 'waiting' && job.state !== 'running'

/** What a web socket tells of a job, the last of it; null where none can be had. */
function told<T>(path: string, seen: (job: Work<T>) => void): Promise<Work<T> | null> {
  const url = new URL(`${path}/progress`, document.baseURI)
  url.protocol = url.protocol.replace('http', 'ws')
  return new Promise((resolve) => {
    let last: Work<T> | null = null
    const socket = new WebSocket(url)
    socket.onmessage = ({ data }) => seen(last = JSON.parse(data) as Work<T>)
    socket.onclose = () => resolve(last)
  })
}

/** A job when it is over; until then, how it goes on is told to `seen`. */
async function followed<T>(path: string, seen: (job: Work<T>) => void): Promise<Work<T>> {
  let last = await told(path, seen)
  while (!last || !over(last)) { // a proxy that passes no web sockets, or a machine that was asleep
    last = await asked<Work<T>>(path)
    seen(last)
    if (!over(last)) await new Promise((resolve) => setTimeout(resolve, WAIT))
  }
  return last
}

export const server = {
  state: () => asked<State>('api/state'),
  model: () => asked<Answering>('api/model'),
  header: (id: number) => asked<Header>(`api/cases/${id}`),
  /** Show a large pyramid finer from now on. */
  refine: (id: number) => asked<Header>(`api/cases/${id}/finer`, 'POST'),
  image: (id: number, { shown }: Header) => `api/cases/${id}/image.nii?${shown.join('x')}`, // which has other voxels once it is refined
  file: (id: number, name: string) => `api/cases/${id}/files/${encodeURIComponent(name)}`,
  thumbnail: (id: number) => `api/cases/${id}/thumbnail.png`,
  check: () => asked<{ job: number }>('api/checks', 'POST', {}),
  checked: (job: number, seen: (job: Work<Record<string, string[]>>) => void) => followed(`api/checks/${job}`, seen),
  difference: (id: number, name: string) => `api/cases/${id}/files/${encodeURIComponent(name)}/difference`,
  predict: (id: number, options: object) => asked<{ job: number }>(`api/cases/${id}/predict`, 'POST', options),
  job: (job: number, seen: (job: Job) => void) => followed(`api/jobs/${job}`, seen),
  adapter: (name: string | null) => asked<{ job: number }>('api/adapter', 'POST', { name }),
  switched: (job: number, seen: (job: Work<Answering>) => void) => followed(`api/jobs/${job}`, seen),
  cancel: (job: number) => asked<Job>(`api/jobs/${job}`, 'DELETE'),
  /** Change points, or add those whose index is null. */
  points: (id: number, changes: { index: number | null; name?: string; position?: number[] | null }[]) => asked<Point[]>(`api/cases/${id}/points`, 'PUT', changes),
  move: (id: number, index: number, position: number[] | null): Promise<Point[]> => server.points(id, [{ index, position }]),
  edit: (id: number, change: object) => asked<Instances>(`api/cases/${id}/instances`, 'POST', change),
  masks: (id: number) => asked<string[]>(`api/cases/${id}/masks`),
  loadMask: (id: number, file: number, value: number | null) => asked<{ drawn: Runs; values: number[]; position: number[]; told: string }>(`api/cases/${id}/masks`, 'POST', { file, value }),
  upload: (id: number, file: File) => asked<{ file: number }>(`api/cases/${id}/masks?name=${encodeURIComponent(file.name)}`, 'PUT', file),
  keep: (id: number) => asked<{ kept: number[] }>(`api/cases/${id}/keep`, 'POST'),
  train: (minutes: number) => asked<{ job: number }>('api/train', 'POST', { minutes }),
  training: (job: number, seen: (job: Training) => void) => followed(`api/trainings/${job}`, seen),
  cancelTraining: (job: number) => asked<Training>(`api/trainings/${job}`, 'DELETE'),
  save: (id: number, points: string) => asked<{ folder: string; files: string[] }>(`api/cases/${id}/save`, 'POST', { points }),
}

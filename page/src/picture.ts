// the picture as a file: what is seen, as PNG
import { app, element, make } from './app'
import { marksPicture } from './marks'

/** Save what is seen of the picture, named after the image. */
export async function savePicture(): Promise<void> {
  const [view, over] = [element<HTMLCanvasElement>('view'), element<HTMLCanvasElement>('over')]
  const { width, height } = view
  const whole = make('canvas', { width, height })
  const onto = whole.getContext('2d')
  if (!onto || !app.header) return
  const marks = await marksPicture(width, height)
  app.scene.draw() // what was drawn is kept only until the browser has shown it
  onto.fillRect(0, 0, width, height) // black behind what is partly clear
  onto.drawImage(view, 0, 0)
  if (!over.hidden) {
    const cut = Math.round(width * shareCut())
    onto.drawImage(over, cut, 0, width - cut, height, cut, 0, width - cut, height)
  }
  onto.drawImage(marks, 0, 0, width, height)
  const blob = await new Promise<Blob | null>((resolve) => whole.toBlob(resolve, 'image/png'))
  if (!blob) throw new Error('The browser made no picture')
  const url = URL.createObjectURL(blob)
  make('a', { href: url, download: `${app.header.name}.png` }).click()
  setTimeout(() => URL.revokeObjectURL(url))
}

/** From which share of the width on the upper picture is seen. */
function shareCut(): number {
  const cut = element<HTMLInputElement>('cut')
  return cut.hidden ? 0 : Number(cut.value)
}
